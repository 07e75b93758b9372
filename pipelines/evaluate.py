"""`rayscan evaluate`: one model on one split of one data set. Reading the test split is written into the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.engine import load_engine
from models.evaluation import evaluation_entry
from models.spec import DISCLAIMER, ModelSpec
from pipelines.bundles import fetch_bundle, record_evaluation
from pipelines.errors import InputError
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.progress import progress
from pipelines.results.report import evaluation_page, put_page

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """How a model did, at its default operating point."""

    model_id: str
    dataset: str
    split: str
    films: int
    operating_point: str
    metrics: Mapping[str, Any]
    """As models.metrics.Evaluation.to_json gives them."""
    subtypes: Mapping[str, Any]
    report: str | None
    notice: str = DISCLAIMER


def evaluate(bundle_uri: str, dataset: str, split: str, *, report: str | None = None) -> EvaluationSummary:
    """Score the films of a split and compare with their labels; `report` names a page to write.

    Raises `InputError` when the data set was not prepared as the model expects its films.
    """
    bundle = fetch_bundle(bundle_uri)
    info = read_dataset_info(dataset)
    _check_fit(bundle.spec, info, dataset)
    films = load_films(dataset, split)
    engine = load_engine(bundle)
    probability = np.empty(len(films), dtype=np.float32)
    with progress(f"evaluate on {split}", len(films), "films") as advance:
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
    )
    if split == "test":
        record_evaluation(bundle_uri, {**entry, "dataset": dataset, "fingerprint": info.fingerprint, "when": _now()})
    if report:
        page = evaluation_page(
            entry,
            labels=films.labels,
            probability=probability,
            model=bundle.spec.name,
            model_id=bundle.model_id,
            dataset=dataset,
        )
        report = put_page(page, report)
    return EvaluationSummary(
        model_id=bundle.model_id,
        dataset=dataset,
        split=split,
        films=len(films),
        operating_point=entry["operating_point"],
        metrics=entry["metrics"],
        subtypes=entry["subtypes"],
        report=report,
    )


def _check_fit(spec: ModelSpec, info: DatasetInfo, dataset: str) -> None:
    wanted, have = spec.preprocessing, info.preprocessing
    if (wanted.film_size, wanted.decode) != (have.film_size, have.decode):
        raise InputError(
            f"{dataset} holds films of {have.film_size} pixels decoded by {have.decode}, the model takes"
            f" {wanted.film_size} by {wanted.decode}; prepare the data set again with --size {wanted.film_size}"
            f" --decode {wanted.decode}"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
