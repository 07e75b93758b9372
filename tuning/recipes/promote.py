"""From a trained model to a published bundle: calibrate, lock operating points, evaluate, compare engines, publish.

All of it uses the validation films, except the familiarity, which describes the training films. A test split is read
only by `rayscan evaluate`, which records it.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle, save_bundle
from models.engines.agreement import COMPARED_FILMS, measure
from models.engines.allocator import keep_memory
from models.engines.choice import CPU_BATCH, GPU_BATCH, EngineBuilder
from models.engines.engine import EngineError
from models.engines.export import export_graph
from models.engines.machine import choose_device, this_machine
from models.films import Films, choose_films
from models.networks.classifier import ScanClassifier, copy_on, in_batches, trained_classifier
from models.networks.familiarity import Familiarity, fit_familiarity
from models.networks.zoo import has_features
from models.spec import CalibrationMethod, ModelSpec
from models.statistics.calibration import Calibration, fit_calibration, operating_points
from models.statistics.evaluation import evaluation_entry
from models.statistics.fingerprint import fingerprint
from models.statistics.robustness import Copies, robustness, score_copies
from pipelines.bundles import fetch_bundle, publish_bundle
from tuning.recipes.selection import Score
from tuning.training.films import TrainingFilms
from tuning.training.loop import Fitted

FAMILIAR_FILMS: Final = 2000
"""Training films that the familiarity is fitted to, at most."""
COPIED_FILMS: Final = 300
"""Films that are perturbed, in each way, and scored again, at most."""

log = logging.getLogger("rayscan")


def promote(
    fitted: Fitted,
    films: TrainingFilms,
    out: str,
    *,
    lineage: Mapping[str, Any],
    selection: Mapping[str, Any] | None = None,
    calibrate: CalibrationMethod = "temperature",
    show_films: bool = True,
) -> Bundle:
    """Publish a trained model at a URI and return the bundle as fetched back from there, verified.

    `lineage` holds plain JSON values beyond what is always recorded (training settings, history, dataset fingerprint,
    counts, versions, time): where the model comes from, for instance a trial of a study. `selection`, for a model that
    was chosen among others by these films, goes into the evaluation; `tuning/study/optimism.py` describes it.
    `show_films` puts a few validation films, which are patients' images, into the bundle with the model's maps.
    """
    keep_memory()
    device = choose_device(fitted.settings.device)
    calibration, copies = lock(fitted, films.val, calibrate, device)
    probability = 1 - calibration.probabilities(fitted.val_logits)[:, 0]
    classifier = calibrated(fitted, calibration)
    classifier.familiarity = _familiarity(classifier, films.train, films.val, device)
    graph = _graph(classifier)
    entry = _evaluation(films.val, probability, calibration)
    if selection is not None:
        entry["selection"] = dict(selection)
    entry["robustness"] = robustness(copies, calibration.threshold).to_json()
    if show_films:
        entry |= _samples(classifier, films.val, probability, calibration, fitted.spec, device)
    entry |= _engines(classifier, graph, films.val, calibration, device, classes=len(fitted.spec.classes))
    from pipelines.pages.card import render_card  # noqa: PLC0415 (matplotlib, which only a promotion needs)

    with tempfile.TemporaryDirectory(prefix="rayscan-bundle-") as folder:
        save_bundle(
            Path(folder),
            render_card=render_card,
            spec=fitted.spec,
            state_dict=fitted.state_dict,
            calibration=calibration,
            evaluation={"val": entry},
            lineage={**_recorded(fitted, films), **lineage},
            familiarity=classifier.familiarity,
            graph=graph,
        )
        publish_bundle(Path(folder), out)
    return fetch_bundle(out)


def _evaluation(val: Films, probability: npt.NDArray[np.float32], calibration: Calibration) -> dict[str, Any]:
    """The metrics on the validation films."""
    return evaluation_entry(
        split="val",
        labels=val.labels,
        probability=probability,
        subtypes=val.subtypes,
        calibration=calibration,
        patients=val.patients,
        groups=val.groups,
    )


def _recorded(fitted: Fitted, films: TrainingFilms) -> dict[str, Any]:
    """The lineage that every bundle has."""
    return {
        "training": asdict(fitted.settings),
        "seed": fitted.settings.seed,
        "history": [asdict(report) for report in fitted.history],
        "best_epoch": fitted.best.epoch,
        "seconds": fitted.seconds,
        "dataset_fingerprint": films.info.fingerprint,
        "counts": {"train": _counts(fitted.spec, films.train), "val": _counts(fitted.spec, films.val)},
        "versions": {name: version(name) for name in ("rayscan", "torch", "timm")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def lock(fitted: Fitted, val: Films, method: CalibrationMethod, device: torch.device) -> tuple[Calibration, Copies]:
    """Calibrate on the validation films; lock the operating points on them and on their perturbed copies.

    Raises what `fit_calibration` raises.
    """
    unlocked = fit_calibration(fitted.val_logits, val.labels, method)
    copies = copies_of(scorer(calibrated(fitted, unlocked), device), val)
    probability = 1 - unlocked.probabilities(fitted.val_logits)[:, 0]
    return replace(unlocked, operating_points=operating_points(val.labels, probability, copies.pooled)), copies


def calibrated(fitted: Fitted, calibration: Calibration) -> ScanClassifier:
    """The trained model with its calibration, as scoring runs it."""
    return trained_classifier(fitted.spec, fitted.state_dict, calibration)


@torch.inference_mode()
def _familiarity(classifier: ScanClassifier, train: Films, val: Films, device: torch.device) -> Familiarity | None:
    """Familiarity fitted to training films chosen by a fixed seed, its limit to validation films as well.

    None for a network without features.
    """
    on_device = copy_on(classifier, device)
    if not has_features(on_device.network, on_device.preprocess(torch.tensor(train.pixels[:2], device=device))):
        log.info("this network has no features to recognise unfamiliar films by: its scores will have no ood_score")
        return None

    def features(films: Films) -> torch.Tensor:
        pixels = films.pixels[choose_films(films.labels, FAMILIAR_FILMS)]
        return in_batches(on_device.features, pixels, device)

    return fit_familiarity(features(train), features(val))


def scorer(classifier: ScanClassifier, device: torch.device) -> Score:
    """A function from films uint8 [N, H, W] to their calibrated probability of disease [N], in float32 on a device."""
    keep_memory()
    on_device = copy_on(classifier, device)

    def score(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = in_batches(on_device, pixels, device).numpy()
        return 1 - probabilities[:, 0]

    return score


def copies_of(score: Score, films: Films) -> Copies:
    """A model's scores of films and their perturbed copies, for at most COPIED_FILMS, with classes in proportion."""
    chosen = choose_films(films.labels, COPIED_FILMS)
    return score_copies(score, films.pixels[chosen], films.labels[chosen])


def _samples(
    classifier: ScanClassifier,
    val: Films,
    probability: npt.NDArray[np.float32],
    calibration: Calibration,
    spec: ModelSpec,
    device: torch.device,
) -> dict[str, Any]:
    """The entry `samples`; empty if the network cannot make maps, which must not cost the training."""
    from pipelines.pages.samples import samples  # noqa: PLC0415 (captum brings matplotlib)

    on_device = copy_on(classifier, device)
    try:
        return {"samples": samples(on_device, val, probability, calibration.threshold, spec.classes)}
    except RuntimeError:  # torch raises it for unsupported operations and for lack of memory
        log.warning("the model card will show no films: the network cannot make maps", exc_info=True)
        return {}


def _graph(classifier: ScanClassifier) -> tuple[bytes, bytes] | None:
    try:
        return export_graph(classifier)
    except EngineError as error:
        log.warning("on a CPU this model will score with torch, several times slower: %s", error)
        return None


def _engines(
    classifier: ScanClassifier,
    graph: tuple[bytes, bytes] | None,
    val: Films,
    calibration: Calibration,
    device: torch.device,
    *,
    classes: int,
) -> dict[str, dict[str, Any]]:
    """The entries `engines` (agreement with float32 torch) and `fingerprint`, from the same validation films.

    A model promoted on a GPU is also compared on that machine's CPU, so that both may score with it.
    """
    chosen = choose_films(val.labels, COMPARED_FILMS)
    pixels, labels = val.pixels[chosen], val.labels[chosen]
    agreements: dict[str, Any] = {}
    for machine in [this_machine(place) for place in dict.fromkeys(["cpu", str(device)])]:
        builder = EngineBuilder(
            lambda: classifier,
            graph,
            machine,
            size=classifier.preprocess.size,
            classes=classes,
            batch=GPU_BATCH if machine.has_gpu else CPU_BATCH,
        )
        reference, measured = measure(builder, pixels, labels, calibration)
        agreements |= {name: agreement.to_json() for name, agreement in measured.items()}
    probability: npt.NDArray[np.float32] = 1 - reference.probabilities[:, 0]
    return {"engines": agreements, "fingerprint": fingerprint(pixels, probability, reference.distance)}


def _counts(spec: ModelSpec, films: Films) -> dict[str, Any]:
    return {
        "films": len(films),
        "patients": len(np.unique(films.patients)),
        "classes": {name: int((films.labels == index).sum()) for index, name in enumerate(spec.classes)},
    }
