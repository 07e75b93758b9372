"""The best trials of a search once more, judged on patients that had no part in any choice.

The winner of a search and its epoch were chosen on the very films that its AUC is measured on. Here the recipe of each
of the few best is followed anew without one fold of patients at a time: some of the others choose the epoch and
calibrate, and the fold is only scored. The folds are of the patients of train. Those of val, by which the search chose
its trials, are never in a fold, so nothing is judged on them. The folds are the same for all trials.

`tuning/study/optimism.py` estimates the same without training, but not the optimism of choosing the epoch. A whole
search within each fold (Varma & Simon 2006) was refused: it costs as many searches as there are folds. What remains is
that the networks the search chose among were trained on the films of train.

Each model here learns from fewer films than its trial did, and from another seed, which is a part of the difference.
Perturbed copies of the films, which `crossvalidate` scores, too, are left out; for small networks they would take most
of the time.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.engines.machine import choose_device
from models.errors import InputError, RayscanError
from models.films import Films, join_films
from models.spec import Preprocessing, Scalar
from models.statistics.bootstrap import Weights, aucs, count_patients, draws, intervals
from models.statistics.metrics import auc
from pipelines.errors import StorageError
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import Store
from tuning.recipes.choices import Folds, FoldsBy
from tuning.recipes.crossvalidate import follow, spread
from tuning.recipes.dealing import deal
from tuning.recipes.promote import calibrated, lock, scorer
from tuning.recipes.recipe import Recipe
from tuning.spaces.space import to_plan
from tuning.study.failure import brief
from tuning.study.records import TrialRecord
from tuning.study.store import read_study
from tuning.training.head_settings import HeadSettings

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """The result of a trial's recipe on held-out patients; no figures where a fold could not be trained."""

    trial_id: str
    number: int
    folds: int
    seed: int
    """Of the folds and of every training."""
    films: int
    """That were judged, each once."""
    search_auc: float
    """The trial's in the search."""
    auc: Mapping[str, float] | None
    """mean, sd (with K - 1), worst and worst_fold over folds: how much the result depends on the films."""
    pooled: Mapping[str, float] | None
    """value, low, high: all folds' films ranked by their calibrated probabilities; 95 % interval over patients."""
    optimism: float | None
    """By how much `search_auc` exceeds the mean over folds."""
    seconds: float
    """Of the trainings."""
    error: str | None = None

    def in_short(self) -> dict[str, Any]:
        """As in a `StudySummary`."""
        if self.auc is None or self.pooled is None:
            return {"number": self.number, "error": self.error}
        return {
            "number": self.number,
            "auc": self.auc["mean"],
            "sd": self.auc["sd"],
            "low": self.pooled["low"],
            "high": self.pooled["high"],
            "search_auc": self.search_auc,
            "optimism": self.optimism,
        }


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """The films of train and val, dealt to folds."""

    films: Films
    fold_of: npt.NDArray[np.int64]
    """Of each film [N], from 1; 0 for those that are in no fold."""
    info: DatasetInfo
    dataset: str
    """URI of the films' dataset."""
    folds: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """One recipe to follow without one fold."""

    trial_id: str
    fold: int
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model's predictions for the n films of the fold it was trained without."""

    trial_id: str
    fold: int
    probability: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """Calibrated, of disease [n]."""
    seconds: float = 0.0
    """Of the training."""
    error: str | None = None
    """Why there is no model, and so no probabilities."""


Run = Callable[[Sequence[FoldJob], Dealt], Iterable[HeldOut]]
"""Runs jobs with `held_out`, in any order."""


def recipe_of(
    parameters: Mapping[str, Scalar],
    *,
    preprocessing: Preprocessing,
    epochs: int,
    seed: int,
    objective: str = "auc",
    about: str = "",
) -> Recipe:
    """The recipe of a trial with these parameters, as `tuning.spaces.space.to_plan` understands them.

    `preprocessing` is the dataset's, `epochs` those of a trial that is not stopped early. Device and threads are left
    open. Raises what `to_plan` raises.
    """
    plan = to_plan(parameters, preprocessing=preprocessing, epochs=epochs, seed=seed, objective=objective)
    return Recipe(
        model=plan.spec.name,
        about=about,
        size=plan.spec.preprocessing.size,
        normalise=plan.spec.preprocessing.normalise,
        head_first=plan.head is not None,
        weights=plan.weights,
        parameters=plan.spec.parameters,
        training=plan.training,
        # its seed is the training's, which is not part of a recipe
        head=HeadSettings() if plan.head is None else replace(plan.head, seed=HeadSettings.seed),
    )


def deal_train(
    train: Films, val: Films, info: DatasetInfo, dataset: str, *, folds: int = Folds.count, seed: int
) -> Dealt:
    """Deal the patients of train to folds; films of patients of val are in none.

    The folds are blocks of the archive's own order, where it is known: what differs between them is the best hint of
    the next hospital or year. Else patients are dealt at random.

    Raises `InputError` where there are too few patients for that many folds.
    """
    films = join_films([train, val])
    judged = ~np.isin(films.patients, val.patients)
    fold_of = np.zeros(len(films), dtype=np.int64)
    try:
        by: FoldsBy = "random" if films.places is None else "blocks"
        fold_of[judged] = deal(films.take(judged), Folds(by=by, count=folds), seed)
    except InputError as error:
        raise InputError(
            f"the train films of {dataset} cannot be dealt to {folds} folds with and without disease in each, so no"
            " trial can be confirmed; leave out --confirm, or prepare a larger dataset"
        ) from error
    return Dealt(films=films, fold_of=fold_of, info=info, dataset=dataset, folds=folds, seed=seed)


def held_out(job: FoldJob, dealt: Dealt) -> HeldOut:
    """Follow a recipe without a fold, then score that.

    A fault of the recipe (training diverges, its weights are gone) is in the result, as it is in a trial's; anything
    else is raised.
    """
    try:
        followed = follow(job.fold, dealt.fold_of, dealt.films, job.recipe, dealt.info, dealt.dataset)
    except StorageError:
        raise
    except RayscanError as error:
        return HeldOut(trial_id=job.trial_id, fold=job.fold, error=brief(error))
    best = followed.trained.best
    calibration = lock(best, followed.val, job.recipe.calibrate).calibration
    score = scorer(calibrated(best, calibration), choose_device(job.recipe.training.device))
    return HeldOut(
        trial_id=job.trial_id, fold=job.fold, probability=score(followed.own.pixels), seconds=followed.seconds
    )


def one_after_another(jobs: Sequence[FoldJob], dealt: Dealt) -> Iterable[HeldOut]:
    """Run jobs in this process."""
    return (held_out(job, dealt) for job in jobs)


def confirm(
    store: Store,
    ranked: Sequence[TrialRecord],
    dealt: Dealt,
    *,
    run: Run = one_after_another,
    known: Sequence[Confirmed] = (),
) -> list[Confirmed]:
    """Train trials of the study at `store` anew over folds and judge them; the results are in their order.

    `ranked` are trials with a result, the first of the leaderboard. Results among `known` with the same folds and seed
    are reused. The trainings start from the seed of the folds: give another than the search's, or lucky initial weights
    would be lucky again.
    """
    study = read_study(store)
    done = {trial.trial_id: trial for trial in known if (trial.folds, trial.seed) == (dealt.folds, dealt.seed)}
    due = [record for record in ranked if record.trial_id not in done]
    recipes = {
        record.trial_id: recipe_of(
            record.parameters,
            preprocessing=dealt.info.preprocessing,
            epochs=study.epochs,
            seed=dealt.seed,
            objective=study.objectives[0],
        )
        for record in due
    }
    numbers = {record.trial_id: record.number for record in due}
    jobs = [
        FoldJob(trial_id=trial_id, fold=fold, recipe=recipe)
        for trial_id, recipe in recipes.items()
        for fold in range(1, dealt.folds + 1)
    ]
    held: dict[str, list[HeldOut]] = defaultdict(list)
    for ended, fold in enumerate(run(jobs, dealt), 1):
        held[fold.trial_id].append(fold)
        result = f"AUC {_auc(fold, dealt):.4f}" if fold.error is None else fold.error
        log.info(
            "%d of %d: trial %d without fold %d: %s, %.1f s of training",
            *(ended, len(jobs), numbers[fold.trial_id], fold.fold, result, fold.seconds),
        )
    drawn = draws(dealt.films.patients[dealt.fold_of > 0]) if due else None
    for record in due:
        assert drawn is not None
        done[record.trial_id] = _confirmed(record, held[record.trial_id], dealt, drawn)
    return [done[record.trial_id] for record in ranked]


def _confirmed(record: TrialRecord, held: Sequence[HeldOut], dealt: Dealt, drawn: Weights) -> Confirmed:
    """The figures of all folds of a trial; `drawn` are draws of the judged films' patients."""
    assert record.auc is not None  # the leaderboard holds only trials with a result
    confirmed = Confirmed(
        trial_id=record.trial_id,
        number=record.number,
        folds=dealt.folds,
        seed=dealt.seed,
        films=int((dealt.fold_of > 0).sum()),
        search_auc=record.auc,
        auc=None,
        pooled=None,
        optimism=None,
        seconds=round(sum(fold.seconds for fold in held), 1),
    )
    in_order = sorted(held, key=lambda fold: fold.fold)
    if failed := [fold for fold in in_order if fold.error is not None]:
        return replace(confirmed, error=f"fold {failed[0].fold}: {failed[0].error}")
    over_folds = spread([_auc(fold, dealt) for fold in in_order])
    probability = np.empty(len(dealt.films), dtype=np.float32)
    for fold in in_order:
        probability[dealt.fold_of == fold.fold] = fold.probability
    judged = dealt.fold_of > 0
    labels, of_judged = dealt.films.labels[judged], probability[judged]
    people = count_patients(labels, dealt.films.patients[judged])
    pooled = intervals({"auc": auc(labels, of_judged)}, {"auc": aucs(labels, of_judged, drawn)}, people)["auc"]
    return replace(confirmed, auc=over_folds, pooled=asdict(pooled), optimism=record.auc - over_folds["mean"])


def _auc(fold: HeldOut, dealt: Dealt) -> float:
    return auc(dealt.films.labels[dealt.fold_of == fold.fold], fold.probability)
