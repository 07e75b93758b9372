"""From a trained model to a published bundle: calibrate, lock operating points, evaluate, compare engines, publish.

All of it uses the validation films, except the familiarity, which describes the training films. A test split is read
only by `rayscan evaluate`, which records it.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from models.intended_use import ANY, IntendedUse, combined
from models.networks.classifier import ScanClassifier, copy_on, in_batches, trained_classifier
from models.networks.familiarity import Familiarity, fit_familiarity
from models.networks.zoo import has_features
from models.spec import CalibrationMethod, ModelSpec
from models.statistics.calibration import Calibration, fit_calibration
from models.statistics.evaluation import evaluation_entry
from models.statistics.fingerprint import fingerprint
from models.statistics.operating_points import Promise, operating_points
from models.statistics.robustness import Copies, join_copies, robustness, score_copies
from pipelines.bundles import fetch_bundle, publish_bundle
from tuning.recipes.intended import seen_in
from tuning.recipes.selection import Score
from tuning.training.films import TrainingFilms
from tuning.training.loop import Fitted

FAMILIAR_FILMS: Final = 2000
"""Training films that the familiarity is fitted to, at most."""
COPIED_FILMS: Final = 300
"""Films that are perturbed, in each way, and scored again, at most."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Locked:
    """What is fixed of a model before anybody sees its scores."""

    calibration: Calibration
    promises: Mapping[str, Promise]
    """Of its operating points."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A trained model, and films it did not learn from."""

    fitted: Fitted
    films: Films

    def scorer(self, calibration: Calibration, device: torch.device) -> Score:
        """See `scorer`."""
        return scorer(calibrated(self.fitted, calibration), device)


def promote(
    fitted: Fitted,
    films: TrainingFilms,
    out: str,
    *,
    lineage: Mapping[str, Any],
    selection: Mapping[str, Any] | None = None,
    calibrate: CalibrationMethod | None = None,
    held_out: Sequence[HeldOut] = (),
    intended_use: IntendedUse = ANY,
    show_films: bool = True,
) -> Bundle:
    """Publish a trained model at a URI and return the bundle as fetched back from there, verified.

    `lineage` holds plain JSON values beyond what is always recorded (training settings, history, dataset fingerprint,
    counts, versions, time): where the model comes from, for instance a trial of a study. `selection`, for a model that
    was chosen among others by these films, goes into the evaluation; `tuning/study/optimism.py` describes it.
    `calibrate` is a recipe's. `held_out` are the models whose predictions `fitted.val_logits` are, with their films, in
    the order of `films.val`, where `fitted` itself learned from these films; `films.val` alone are its own.
    `intended_use` is what a person states of it; the rest is what the training films show.
    `show_films` puts a few validation films, which are patients' images, into the bundle with the model's maps.
    """
    keep_memory()
    device = choose_device(fitted.settings.device)
    locked = lock(fitted, films.val, calibrate)
    calibration = locked.calibration
    judges = held_out or [HeldOut(fitted=fitted, films=films.val)]
    copies = join_copies([copies_of(one.scorer(calibration, device), one.films, len(judges)) for one in judges])
    probability = 1 - calibration.probabilities(fitted.val_logits)[:, 0]
    classifier = calibrated(fitted, calibration)
    classifier.familiarity = _familiarity(classifier, films.train, judges[0].films, device)
    graph = _graph(classifier)
    entry = _evaluation(films.val, probability, calibration)
    if held_out:
        entry["out_of_fold"] = {"folds": len(held_out), "films": len(films.val)}
    entry["promises"] = {name: promise.to_json() for name, promise in locked.promises.items()}
    if selection is not None:
        entry["selection"] = dict(selection)
    entry["robustness"] = robustness(copies, calibration.threshold).to_json()
    if show_films:
        entry |= _samples(classifier, films.val, probability, calibration, fitted.spec, device)
    # films that the network which describes films, the first, did not learn from: the first of `films.val`
    unseen = judges[0].films
    entry |= _engines(
        classifier, graph, unseen, calibration, device, probability[: len(unseen)], classes=len(fitted.spec.classes)
    )
    from pipelines.pages.card import render_card  # noqa: PLC0415 (matplotlib, which only a promotion needs)

    with tempfile.TemporaryDirectory(prefix="rayscan-bundle-") as folder:
        save_bundle(
            Path(folder),
            render_card=render_card,
            spec=fitted.spec,
            state_dict=fitted.state_dict,
            calibration=calibration,
            evaluation={"val": entry},
            lineage={
                **_recorded(fitted, films),
                "intended_use": combined(intended_use, seen_in(films.train)).to_json(),
                **lineage,
            },
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
    counts = {"train": _counts(fitted.spec, films.train), "val": _counts(fitted.spec, films.val)}
    if films.train is films.val:
        counts = {"train and val": counts["train"]}
    return {
        "training": asdict(fitted.settings),
        "seed": fitted.settings.seed,
        "history": [asdict(report) for report in fitted.history],
        "best_epoch": fitted.best.epoch,
        "seconds": fitted.seconds,
        "dataset_fingerprint": films.info.fingerprint,
        "counts": counts,
        "versions": {name: version(name) for name in ("rayscan", "torch", "timm")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def lock(fitted: Fitted, val: Films, method: CalibrationMethod | None) -> Locked:
    """Calibrate and lock the operating points on the validation films, by their logits in `fitted`.

    `method` is a recipe's. Raises what `fit_calibration` raises.
    """
    chosen: CalibrationMethod = method or ("platt" if fitted.settings.overstates else "temperature")
    unlocked = fit_calibration(fitted.val_logits, val.labels, chosen)
    probability = 1 - unlocked.probabilities(fitted.val_logits)[:, 0]
    points = operating_points(val.labels, probability, val.patients)
    return Locked(calibration=replace(unlocked, operating_points=points.thresholds), promises=points.promises)


def calibrated(fitted: Fitted, calibration: Calibration) -> ScanClassifier:
    """The trained model with its calibration, as scoring runs it."""
    return trained_classifier(fitted.spec, fitted.state_dict, calibration)


def _familiarity(classifier: ScanClassifier, train: Films, held_out: Films, device: torch.device) -> Familiarity | None:
    """Familiarity fitted to training films chosen by a fixed seed, its limit to films the network did not learn from.

    Of an ensemble the first network describes films, so `held_out` are those of its fold. None for a network without
    features.
    """
    on_device = copy_on(classifier, device)
    if not has_features(on_device.network, on_device.preprocess(torch.tensor(train.pixels[:2], device=device))):
        log.info("this network has no features to recognise unfamiliar films by: its scores will have no ood_score")
        return None
    learned = train.take(~np.isin(train.patients, held_out.patients))
    return fit_familiarity(_described(on_device, learned, device), _described(on_device, held_out, device))


@torch.inference_mode()
def _described(on_device: ScanClassifier, films: Films, device: torch.device) -> torch.Tensor:
    """What a network saw of films chosen by a fixed seed, [M, D]."""
    return in_batches(on_device.description, films.pixels[choose_films(films.labels, FAMILIAR_FILMS)], device)


def scorer(classifier: ScanClassifier, device: torch.device) -> Score:
    """A function from films uint8 [N, H, W] to their calibrated probability of disease [N], in float32 on a device."""
    keep_memory()
    on_device = copy_on(classifier, device)

    def score(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = in_batches(on_device, pixels, device).numpy()
        return 1 - probabilities[:, 0]

    return score


def copies_of(score: Score, films: Films, models: int = 1) -> Copies:
    """A model's scores of films and their perturbed copies, with classes in proportion.

    For at most COPIED_FILMS of all `models` together.
    """
    chosen = choose_films(films.labels, COPIED_FILMS // models)
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
    probability: npt.NDArray[np.float32],
    *,
    classes: int,
) -> dict[str, dict[str, Any]]:
    """The entries `engines` (agreement with float32 torch) and `fingerprint`, from the same validation films.

    `probability` [N] is that of the models that did not learn from them: what new films are expected to have.

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
    return {"engines": agreements, "fingerprint": fingerprint(pixels, probability[chosen], reference.distance)}


def _counts(spec: ModelSpec, films: Films) -> dict[str, Any]:
    return {
        "films": len(films),
        "patients": len(np.unique(films.patients)),
        "classes": {name: int((films.labels == index).sum()) for index, name in enumerate(spec.classes)},
    }
