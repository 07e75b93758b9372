"""`rayscan train`: one model on one data set, to a bundle."""

import logging
from dataclasses import dataclass, replace

from models.spec import ModelSpec
from pipelines.errors import InputError
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import open_store
from tuning.loop import EpochReport, TrainSettings, fit
from tuning.promote import promote

log = logging.getLogger("rayscan")


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


def train(dataset: str, out: str, model: str, settings: TrainSettings, *, size: int | None = None) -> TrainSummary:
    """Train the named model on the split train, judge and calibrate it on val, publish the bundle at `out`.

    `size` is the side of the network's input in pixels; None takes the data set's.
    Raises `InputError` for an unknown model, or a size above the data set's.
    """
    open_store(out).require_writable()
    info = read_dataset_info(dataset)
    if size is not None and size > info.size:
        raise InputError(f"--size {size} is above the data set's {info.size} pixels; prepare it again with that size")
    spec = ModelSpec(
        name=model, preprocessing=replace(info.preprocessing, size=size or info.size, decoded_size=info.size)
    )
    films, val = load_films(dataset, "train"), load_films(dataset, "val")
    fitted = fit(spec, films, val, settings, on_epoch=lambda report, _: _tell(report, settings.epochs))
    bundle = promote(fitted, films, val, info, out, lineage={"made_by": "rayscan train"})
    metrics = bundle.evaluation["val"]["metrics"]
    return TrainSummary(
        bundle=out,
        model_id=bundle.model_id,
        model=model,
        **{name: metrics[name]["value"] for name in ("auc", "accuracy", "sensitivity", "specificity")},
        auc_low=metrics["auc"]["low"],
        auc_high=metrics["auc"]["high"],
        operating_point=bundle.calibration.default,
        best_epoch=fitted.best.epoch,
        seconds=round(fitted.seconds, 1),
    )


def _tell(report: EpochReport, epochs: int) -> bool:
    log.info("epoch %d of %d: loss %.4f, validation AUC %.4f, %.1f s", report.epoch, epochs, report.train_loss,
             report.val_auc, report.seconds)  # fmt: skip
    return True
