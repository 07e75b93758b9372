"""Films and trained models for the checks: phantoms, and bundles made of them without Ray or object storage."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from models.bundle import Bundle, save_bundle
from models.films import Films
from models.networks.classifier import copy_on, in_batches, trained_classifier
from models.networks.familiarity import fit_familiarity
from models.networks.zoo import has_features
from models.spec import ModelSpec, Preprocessing
from models.statistics.calibration import fit_calibration
from models.statistics.operating_points import operating_points
from pipelines.phantom.render import film
from tuning.training.loop import Fitted, TrainSettings, fit


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything: for a GPU, or small for a slow CPU."""

    side: int
    train: int
    val: int
    epochs: int
    models: tuple[str, ...]
    batches: tuple[int, ...]
    epoch_films: int
    """Films of the epochs that are timed."""
    packed: int
    """Trials that share the device."""
    seconds: float
    """For each measured speed."""
    recipes: tuple[str, ...]
    """Whose epochs are timed, each from random weights and at the size of the films."""
    small: bool = False


LARGE = Size(
    side=224,
    train=640,
    val=400,
    epochs=10,
    models=("mobilenetv2_035", "cnn"),
    batches=(1, 8, 64, 256),
    epoch_films=4447,
    packed=8,
    seconds=0.6,
    recipes=("mobilenet", "cnn-best", "cnn-deep", "mlp", "xception-top"),
)
SMALL = Size(
    side=32,
    train=64,
    val=48,
    epochs=2,
    models=("cnn",),
    batches=(1, 8),
    epoch_films=64,
    packed=2,
    seconds=0.05,
    recipes=("mlp",),
    small=True,
)


def phantoms(count: int, side: int, seed: int) -> Films:
    """Phantom films [count, side, side], every other one ill; drawn by all cores where that pays."""
    jobs = [(seed, index, side) for index in range(count)]
    if count * side < 50_000:
        drawn = [_draw(job) for job in jobs]
    else:  # forked: call it before the GPU is touched
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
            drawn = list(pool.map(_draw, jobs, chunksize=8))
    labels = np.arange(count, dtype=np.int64) % 2
    names = np.array([f"{seed}-{index}" for index in range(count)])
    subtypes = np.where(labels == 1, "bacteria", "")
    return Films(pixels=np.stack(drawn), labels=labels, patients=names, subtypes=subtypes, scan_ids=names)


def _draw(job: tuple[int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    seed, index, side = job
    return film(np.random.default_rng((seed, index)), opacity=index % 2 == 1, size=side)[0]


def repeated(films: Films, count: int) -> Films:
    """As many films as asked for, each as often as it takes."""
    return films.take(np.arange(count) % len(films))


def spec_of(model: str, side: int) -> ModelSpec:
    """A model of the checks; none has dropout, so that devices can be compared."""
    if model == "cnn":
        depth = 4 if side >= 64 else 2
        return ModelSpec(
            name="cnn",
            parameters={"depth": depth, "width": 16, "dropout": 0.0},
            preprocessing=Preprocessing(size=min(side, 128), decoded_size=side),
        )
    return ModelSpec(name=model, preprocessing=Preprocessing(size=side, normalise="symmetric"))


def trained(model: str, train: Films, val: Films, size: Size, device: str) -> Fitted:
    """A model trained on phantoms from random weights."""
    settings = TrainSettings(
        epochs=size.epochs, batch_size=32, learning_rate=3e-3, augment=0.3, ema=0.0, device=device, seed=1
    )
    return fit(spec_of(model, size.side), train, val, settings)


def bundle_of(fitted: Fitted, train: Films, val: Films, folder: Path) -> Bundle:
    """A bundle as promotion on a CPU without OpenVINO leaves it: no engine has been compared."""
    calibration = fit_calibration(fitted.val_logits, val.labels, "temperature")
    probability = 1 - calibration.probabilities(fitted.val_logits)[:, 0]
    points = operating_points(val.labels, probability).thresholds
    classifier = trained_classifier(fitted.spec, fitted.state_dict, calibration)
    on_cpu = copy_on(classifier, torch.device("cpu"))
    known = None
    if has_features(on_cpu.network, on_cpu.preprocess(torch.tensor(train.pixels[:2]))):
        known = fit_familiarity(
            in_batches(on_cpu.description, train.pixels), in_batches(on_cpu.description, val.pixels)
        )
    return save_bundle(
        folder,
        spec=fitted.spec,
        state_dict=fitted.state_dict,
        calibration=type(calibration)(**{**vars(calibration), "operating_points": points}),
        evaluation={"val": {"engines": {}}},
        lineage={},
        render_card=lambda *_, **__: "<html></html>",
        familiarity=known,
    )
