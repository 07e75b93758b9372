"""The winner of a study: which trial it is, and its bundle at STUDY/best."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.errors import BundleError, RayscanError
from models.films import Films
from models.intended_use import ANY, IntendedUse
from models.networks.classifier import in_batches, trained_classifier
from models.statistics.calibration import UNCALIBRATED
from pipelines.bundles import fetch_bundle
from pipelines.errors import IncompleteError
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import Store
from tuning.recipes.choices import Select
from tuning.recipes.promote import promote
from tuning.recipes.selection import TOP, Score, most_robust
from tuning.spaces.space import TrialPlan, to_plan
from tuning.study.optimism import Optimism
from tuning.study.records import StudyInfo, TrialRecord, leaderboard
from tuning.study.store import BEST
from tuning.study.trial_files import load_weights
from tuning.training.films import TrainingFilms
from tuning.training.loop import EpochReport, Fitted

log = logging.getLogger("rayscan")

Logits = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Films uint8 [N, H, W] -> uncalibrated logits [N, C]."""


def promote_best(
    store: Store,
    records: Sequence[TrialRecord],
    study: StudyInfo,
    *,
    dataset: DatasetInfo,
    train: Films,
    val: Films,
    select: Select = "auc",
    intended_use: IntendedUse = ANY,
    show_films: bool = True,
    optimism: Optimism | None = None,
) -> tuple[TrialRecord, Bundle]:
    """Make the bundle of the best trial at STUDY/best, from the weights its best epoch left.

    `select` "robust" takes, of the few best, the one that is best on perturbed copies of the films; see
    `tuning/recipes/selection.py`. `intended_use` and `show_films` are those of
    `tuning.recipes.promote.promote`. `optimism` of the choice
    goes into the bundle's lineage and evaluation.

    Its figures are computed anew from those weights, not taken from the table. A bundle of that trial that is there
    already stays as it is: with another model_id every archive would be scored again.

    Raises `RayscanError` where every trial failed, `IncompleteError` where none came as far as its first epoch.
    """
    ranked = leaderboard(records)
    if not ranked:
        raise _no_result(store, records)
    record = ranked[0]
    lineage: dict[str, Any] = {}
    if select == "robust":
        scorers = [_scorer(logits_of(store, trial, study, dataset)) for trial in ranked[:TOP]]
        place, figures = most_robust(scorers, val)
        record = ranked[place]
        lineage["selection"] = [{"trial": trial.number, **of} for trial, of in zip(ranked, figures, strict=False)]
    if (earlier := _earlier_bundle(store)) is not None and earlier.lineage.get("trial_id") == record.trial_id:
        stated = intended_use.to_json().items()
        if not stated <= earlier.intended_use.to_json().items():
            log.warning(
                "%s stays as it is, without the intended use stated now: bundles do not change", store.uri(BEST)
            )
        return record, earlier
    lineage |= {"study": store.root, "trial_id": record.trial_id, "trial": record.number, "dataset": study.dataset}
    choice: dict[str, Any] = {"by": select, "trials": len(records), "results": len(ranked)}
    if optimism is not None:
        choice |= optimism.to_json()
    lineage["search"] = choice
    bundle = promote(
        _fitted(store, record, study, dataset, val),
        TrainingFilms(uri=study.dataset, info=dataset, train=train, val=val),
        out=store.uri(BEST),
        lineage=lineage,
        selection=choice,
        intended_use=intended_use,
        show_films=show_films,
    )
    return record, bundle


def _fitted(store: Store, record: TrialRecord, study: StudyInfo, dataset: DatasetInfo, val: Films) -> Fitted:
    """The trained model a trial left."""
    plan = _plan(record, study, dataset)
    history = tuple(EpochReport(**epoch) for epoch in record.history)
    return Fitted(
        spec=plan.spec,
        settings=plan.training,
        state_dict=load_weights(store, record.trial_id),
        val_logits=logits_of(store, record, study, dataset)(val.pixels),
        history=history,
        best=max(history, key=lambda report: report.quality),
        seconds=record.seconds,
    )


def logits_of(store: Store, record: TrialRecord, study: StudyInfo, dataset: DatasetInfo) -> Logits:
    """A trial's network after its best epoch, on the CPU in float32, as the engine computes it.

    Raises `NotFoundError` where its weights are gone.
    """
    spec = _plan(record, study, dataset).spec
    classifier = trained_classifier(spec, load_weights(store, record.trial_id)).to(memory_format=torch.channels_last)

    def logits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        computed: npt.NDArray[np.float32] = in_batches(classifier.logits, pixels).numpy()
        return computed

    return logits


def _plan(record: TrialRecord, study: StudyInfo, dataset: DatasetInfo) -> TrialPlan:
    return to_plan(
        record.parameters,
        preprocessing=dataset.preprocessing,
        epochs=study.epochs,
        seed=record.seed,
        threads=study.settings["cpus_per_trial"],
        objective=study.objectives[0],
    )


def _scorer(logits: Logits) -> Score:
    return lambda pixels: 1 - UNCALIBRATED.probabilities(logits(pixels))[:, 0]


def _no_result(store: Store, records: Sequence[TrialRecord]) -> RayscanError:
    errors = "; ".join(dict.fromkeys(record.error for record in records if record.error))
    if errors:
        return RayscanError(f"every trial of {store.root} failed: {errors}")
    return IncompleteError(f"{store.root}: the search ended before any trial had a result; go on with --resume")


def _earlier_bundle(store: Store) -> Bundle | None:
    """The bundle at STUDY/best; None where there is none, or only part of one."""
    try:
        return fetch_bundle(store.uri(BEST))
    except BundleError:
        return None
