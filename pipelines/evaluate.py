"""`rayscan evaluate`: one or more models on one split of a data set. Each read of a test split is recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.engines.choice import load_engine
from models.engines.machine import Precision
from models.films import Films
from models.spec import DISCLAIMER
from models.statistics.calibration import called_positive
from models.statistics.evaluation import evaluation_entry
from models.statistics.metrics import brier, ece
from models.statistics.prior_shift import PRIOR_METHODS, bbse, saerens
from pipelines.bundles import fetch_bundle, record_evaluation
from pipelines.errors import InputError
from pipelines.ingest.dataset import check_fits, load_films, read_dataset_info
from pipelines.pages.comparison import EvaluatedModel, comparison_page
from pipelines.pages.evaluation import evaluation_page
from pipelines.pages.page_file import put_page
from pipelines.progress import progress

BATCH = 32
EXACT: Final = "fp32"
_RECORDED: Final = ("name", "precision", "device", "version")
"""Of the engine, in an entry: which it was, and not how fast."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """How a model performed, at its default operating point."""

    model_id: str
    dataset: str
    split: str
    films: int
    operating_point: str
    metrics: Mapping[str, Any]
    """As models.statistics.metrics.Evaluation.to_json gives them."""
    subtypes: Mapping[str, Any]
    prior_shift: Mapping[str, Any] | None
    """If asked for: `training`, `estimated` and `true` prevalence; `brier` and `ece` before and after correction."""
    engine: str
    """Engine, precision and device the films were scored by."""
    report: str | None
    notice: str = DISCLAIMER


@dataclass(frozen=True, kw_only=True)
class ComparisonSummary:
    """How several models performed on the same films, in the order given."""

    dataset: str
    split: str
    films: int
    models: Sequence[EvaluationSummary]
    report: str | None
    notice: str = DISCLAIMER

    def in_short(self) -> dict[str, Any]:
        """One line per model, at its default operating point."""
        return {**vars(self), "models": [_in_words(summary) for summary in self.models]}


def evaluate(
    bundle_uri: str,
    dataset: str,
    split: str,
    *,
    report: str | None = None,
    prior_shift: str | None = None,
    precision: Precision = EXACT,
) -> EvaluationSummary:
    """Score the films of a split and compare with their labels; `report` names a page to write.

    `precision` is that of the engine; in float32 the figures do not depend on the machine. The entry `engine` says
    which engine it was.
    `prior_shift`, one of `models.statistics.prior_shift.PRIOR_METHODS`, estimates the prevalence from the scores alone
    and reports how good probabilities corrected for it would be, in the entry `prior_shift`. It changes nothing else.

    Raises `InputError` when the data set was not prepared as the model expects its films.
    """
    films = _films([bundle_uri], dataset, split)
    model = _judge(bundle_uri, dataset, split, films, precision, prior_shift)
    if report:
        page = evaluation_page(model.entry, model=model.name, model_id=model.model_id, dataset=dataset)
        report = put_page(page, report)
    return _summary(model, dataset, split, films, report)


def compare(
    bundle_uris: Sequence[str],
    dataset: str,
    split: str,
    *,
    report: str | None = None,
    precision: Precision = EXACT,
) -> ComparisonSummary:
    """`evaluate` several models on the same films; `report` names a page that shows them side by side.

    Raises `InputError` as `evaluate` does, and when two of the bundles hold the same model.
    """
    films = _films(bundle_uris, dataset, split)
    judged = [_judge(uri, dataset, split, films, precision) for uri in bundle_uris]
    if len({model.model_id for model in judged}) < len(judged):
        raise InputError("two of the bundles hold the same model; name each once")
    names = [model.name for model in judged]
    labelled = [
        replace(model, name=f"{model.name} {model.model_id[:6]}") if names.count(model.name) > 1 else model
        for model in judged
    ]
    if report:
        report = put_page(comparison_page(films.labels, films.patients, labelled, split=split, dataset=dataset), report)
    models = [_summary(model, dataset, split, films, None) for model in judged]
    return ComparisonSummary(dataset=dataset, split=split, films=len(films), models=models, report=report)


def _in_words(summary: EvaluationSummary) -> str:
    figures = (f"{name} {summary.metrics[name]['value']:.3f}" for name in ("accuracy", "sensitivity", "specificity"))
    auc = summary.metrics["auc"]
    return f"{summary.model_id}  AUC {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), {', '.join(figures)}"


def _films(bundle_uris: Sequence[str], dataset: str, split: str) -> Films:
    """The films of the split, checked to be what all these models take."""
    specs = [fetch_bundle(uri).spec for uri in bundle_uris]
    info = read_dataset_info(dataset)
    for spec in specs:
        check_fits(spec.preprocessing, info, dataset)
    return load_films(dataset, split)


def _judge(
    bundle_uri: str, dataset: str, split: str, films: Films, precision: Precision, prior_shift: str | None = None
) -> EvaluatedModel:
    bundle = fetch_bundle(bundle_uri)
    engine = load_engine(bundle, precision=precision)
    probability = np.empty(len(films), dtype=np.float32)
    with progress(f"evaluate {bundle.name} on {split}", len(films), "films") as advance:
        for start in range(0, len(films), BATCH):
            classes = engine(films.pixels[start : start + BATCH]).probabilities
            probability[start : start + BATCH] = 1.0 - classes[:, 0]
            advance(len(classes))
    entry = evaluation_entry(
        split=split,
        labels=films.labels,
        probability=probability,
        subtypes=films.subtypes,
        calibration=bundle.calibration,
        patients=films.patients,
        groups=films.groups,
    )
    entry["engine"] = {name: value for name, value in engine.choice.to_json().items() if name in _RECORDED}
    if prior_shift is not None:
        entry["prior_shift"] = _prior_shift(bundle, prior_shift, films, probability)
    if split == "test":
        fingerprint = read_dataset_info(dataset).fingerprint
        record_evaluation(bundle_uri, {**entry, "dataset": dataset, "fingerprint": fingerprint, "when": _now()})
    return EvaluatedModel(
        name=bundle.name,
        model_id=bundle.model_id,
        entry=entry,
        probability=probability,
        called=called_positive(probability, bundle.calibration.threshold),
    )


def _prior_shift(bundle: Bundle, method: str, films: Films, probability: npt.NDArray[np.float32]) -> dict[str, Any]:
    known = bundle.evaluation.get("val", {}).get("metrics")
    if method not in PRIOR_METHODS or not known:
        what = f"unknown estimate of the prevalence {method!r}; choose {' or '.join(PRIOR_METHODS)}"
        raise InputError(what if known else f"{bundle.model_id} does not record its results on validation films")
    training = known["positives"] / known["n"]
    if method == "saerens":
        shift = saerens(probability, training)
    else:
        rates = {name: known[name]["value"] for name in ("sensitivity", "specificity")}
        shift = bbse(probability, bundle.calibration.threshold, **rates, training=training)
    corrected = shift.corrected(probability)
    return {
        **asdict(shift),
        "true": float((films.labels != 0).mean()),
        "brier": [brier(films.labels, values) for values in (probability, corrected)],
        "ece": [ece(films.labels, values) for values in (probability, corrected)],
    }


def _summary(model: EvaluatedModel, dataset: str, split: str, films: Films, report: str | None) -> EvaluationSummary:
    return EvaluationSummary(
        model_id=model.model_id,
        dataset=dataset,
        split=split,
        films=len(films),
        operating_point=model.entry["operating_point"],
        metrics=model.entry["metrics"],
        subtypes=model.entry["subtypes"],
        prior_shift=model.entry.get("prior_shift"),
        engine=model.entry["engine"]["name"],
        report=report,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
