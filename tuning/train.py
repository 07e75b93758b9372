"""`rayscan train`: one model on one data set, by a recipe, to a bundle."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from models.films import Films
from models.losses import cross_entropy
from models.preprocess import Preprocess
from models.spec import ModelSpec
from models.weights import unfold_batch_norm
from models.zoo import layer_groups
from pipelines.contracts import LABELS
from pipelines.errors import InputError
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import open_store
from tuning.features import Features, HeadSettings, compute_features, fit_head, install_head, pretrained_network
from tuning.loop import EpochReport, Fitted, fit
from tuning.promote import promote
from tuning.recipe import NEEDED, Recipe

log = logging.getLogger("rayscan")

UNFOLD_FILMS = 64


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What came of it, on the validation films."""

    bundle: str
    model_id: str
    model: str
    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    sensitivity: float
    specificity: float
    operating_point: str
    best_epoch: int
    seconds: float


def train(dataset: str, out: str, recipe: Recipe, *, show_films: bool = True) -> TrainSummary:
    """Train by a recipe on the split train, judge and calibrate on val, publish the bundle at `out`.

    Of a grid every combination is trained, and the best validation AUC is kept; what the others came to stands in the
    bundle's lineage. `show_films` is that of `tuning.promote.promote`. Raises `InputError` for an unknown model, a size
    above the data set's, or weights that are needed and not named.
    """
    started = time.perf_counter()
    open_store(out).require_writable()
    if recipe.weights == NEEDED:
        raise InputError(
            "this recipe starts from pretrained weights: name their file or URI with --weights, or `imagenet` for those"
            " timm publishes, where there is a network"
        )
    info = read_dataset_info(dataset)
    films, val = (relabelled(load_films(dataset, split), recipe.classes) for split in ("train", "val"))
    points = recipe.points()
    tried: list[dict[str, object]] = []
    best: Fitted | None = None
    for number, point in enumerate(points, 1):
        fitted = _fitted(point, info, dataset, films, val)
        tried.append({"parameters": dict(point.parameters), "val_auc": fitted.best.val_auc, "seconds": fitted.seconds})
        if len(points) > 1:
            log.info("%d of %d: %s, AUC %.4f", number, len(points), dict(point.parameters), fitted.best.val_auc)
        if best is None or fitted.best.val_auc > best.best.val_auc:
            best = fitted
    assert best is not None
    lineage = {"made_by": "rayscan train", "recipe": _recorded(recipe), **({"grid": tried} if recipe.grid else {})}
    bundle = promote(best, films, val, info, out, lineage=lineage, calibrate=recipe.calibrate, show_films=show_films)
    metrics = bundle.evaluation["val"]["metrics"]
    return TrainSummary(
        bundle=out,
        model_id=bundle.model_id,
        model=recipe.model,
        **{name: metrics[name]["value"] for name in ("auc", "accuracy", "sensitivity", "specificity")},
        auc_low=metrics["auc"]["low"],
        auc_high=metrics["auc"]["high"],
        operating_point=bundle.calibration.default,
        best_epoch=best.best.epoch,
        seconds=round(time.perf_counter() - started, 1),
    )


def relabelled(films: Films, classes: tuple[str, ...]) -> Films:
    """The films with labels of these classes: as they are for LABELS, else by subtype; films of no class are left out.

    Raises `InputError` when no film is of some class.
    """
    if classes == LABELS:
        return films
    names = np.where(films.labels == 0, LABELS[0], np.char.upper(films.subtypes))
    missing = [name for name in classes if not (names == name).any()]
    if missing or classes[0] != LABELS[0]:
        have = ", ".join(sorted({str(name) for name in names if name} - {LABELS[0]})) or "none"
        raise InputError(
            f"no film is of class {', '.join(missing)}; the first class is {LABELS[0]}, kinds here are {have}"
        )
    kept = np.isin(names, classes)
    if not kept.all():
        log.info("%d films are of none of the classes %s; they are left out", int((~kept).sum()), ", ".join(classes))
    order = {name: index for index, name in enumerate(classes)}
    return Films(
        pixels=films.pixels[kept],
        labels=np.array([order[str(name)] for name in names[kept]], dtype=np.int64),
        patients=films.patients[kept],
        subtypes=films.subtypes[kept],
        scan_ids=films.scan_ids[kept],
        groups={kind: of[kept] for kind, of in films.groups.items()},
    )


def _recorded(recipe: Recipe) -> dict[str, object]:
    return {key: value for key, value in asdict(recipe).items() if key != "training"}  # which is recorded anyway


def _fitted(recipe: Recipe, info: DatasetInfo, dataset: str, films: Films, val: Films) -> Fitted:
    """One model, trained."""
    size = recipe.size if recipe.size is not None else info.size
    if size > info.size:
        raise InputError(
            f"{dataset} holds films of {info.size} pixels, the model wants {size}: prepare it again with --size {size},"
            f" or train with --size {info.size}"
        )
    preprocessing = replace(info.preprocessing, size=size, decoded_size=info.size, normalise=recipe.normalise)
    spec = ModelSpec(
        name=recipe.model, parameters=recipe.parameters, classes=recipe.classes, preprocessing=preprocessing
    )
    settings = recipe.training
    if recipe.weights is None:
        return fit(spec, films, val, settings, on_epoch=lambda report, _: _tell(report, settings.epochs))
    with torch.random.fork_rng(devices=[]):  # what the weights lack, a classifier, starts from the seed
        torch.manual_seed(settings.seed)
        network, loaded = pretrained_network(spec, recipe.weights)
    if recipe.learn == "head":
        return _new_head(recipe, spec, network, films, val)
    if loaded.folded:
        some = torch.tensor(films.pixels[:: max(1, len(films) // UNFOLD_FILMS)][:UNFOLD_FILMS])
        unfold_batch_norm(network, Preprocess(preprocessing)(some))
    if recipe.learn != "all":
        frozen = max(0, len(layer_groups(network)) - recipe.learn)
        settings = replace(settings, frozen_groups=frozen)
    start: Mapping[str, Tensor] = network.state_dict()
    return fit(spec, films, val, settings, on_epoch=lambda report, _: _tell(report, settings.epochs), weights=start)


def _new_head(recipe: Recipe, spec: ModelSpec, network: nn.Module, films: Films, val: Films) -> Fitted:
    """A frozen backbone with a new classifier, fitted to its features; they are computed once."""
    started = time.perf_counter()
    of_train, of_val = (
        Features(values=compute_features(network, spec.preprocessing, side.pixels), labels=side.labels)
        for side in (films, val)
    )
    head = fit_head(of_train, of_val, HeadSettings(seed=recipe.training.seed), classes=len(spec.classes))
    install_head(network, head.head)
    seconds = time.perf_counter() - started
    report = EpochReport(
        epoch=1,
        train_loss=_loss(head.head.logits(of_train.values), films),
        val_auc=head.val_auc,
        val_loss=_loss(head.val_logits, val),
        seconds=seconds,
    )
    _tell(report, 1)
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    return Fitted(
        spec=spec,
        settings=replace(recipe.training, epochs=1),
        state_dict=state,
        val_logits=head.val_logits,
        history=(report,),
        best=report,
        seconds=seconds,
    )


def _loss(logits: object, films: Films) -> float:
    return float(cross_entropy(torch.as_tensor(logits), torch.tensor(films.labels)))


def _tell(report: EpochReport, epochs: int) -> bool:
    log.info("epoch %d of %d: loss %.4f, validation AUC %.4f, %.1f s", report.epoch, epochs, report.train_loss,
             report.val_auc, report.seconds)  # fmt: skip
    return True
