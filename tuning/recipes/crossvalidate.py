"""`rayscan crossvalidate`: how a recipe does on patients held out and on perturbed copies of their films, in K folds.

The films of train and val are dealt to K folds, each patient to one (`tuning/recipes/dealing.py`). For each fold the
recipe is followed without it: some of the other patients choose the epoch (and the combination of a grid), calibrate
and lock the operating points, as in `train`; then the fold is scored, as it is and perturbed. So each film is scored
once, by a model that nothing of its patient went into, and no figure comes from films by which anything was chosen, not
even the combination of a grid
(Varma & Simon 2006, "Bias in error estimation when using cross-validation for model selection").

Two spreads are reported, as neither includes the other: over folds, from the choice of training films and initial
weights; and over patients (`models/statistics/bootstrap.py`), from the films on which these K models are judged. Folds
share training films, so their deviation is lower than that of K recipes on K archives (Bengio & Grandvalet 2004).

The test split is never read. All films are of one archive: the perturbed copies are the only hint of another one. If
little is trained they take most of the time: for MobileNetV2 0.35 at 224 px 14 to 20 s a fold, on one core.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.engines.machine import choose_device
from models.films import Films, join_films
from models.networks.zoo import entry
from models.spec import DISCLAIMER
from models.statistics.bootstrap import count_patients, draws, figures, intervals
from models.statistics.metrics import auc
from models.statistics.robustness import CHANGES, Robustness, robustness
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.ingest.split import split_patients
from pipelines.pages.crossvalidation import DEALT, crossvalidation_page
from pipelines.pages.page_file import put_page
from tuning.recipes.choices import Folds, FoldsBy
from tuning.recipes.dealing import deal, strata
from tuning.recipes.fitting import Trained, fit_recipe, relabelled
from tuning.recipes.folds import Fold, KeptFolds
from tuning.recipes.promote import calibrated, copies_of, lock, scorer
from tuning.recipes.recipe import Recipe, require_weights
from tuning.training.films import TrainingFilms

log = logging.getLogger("rayscan")

VALIDATION: Final = 0.15
"""Share of the films outside a fold that choose, calibrate and lock; `catalog` gives `val` the same share."""
DEFAULT_FOLDS: Final = Folds()
FIGURES: Final = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """The result of all folds; the figures are `FIGURES`.

    Accuracy depends on prevalence; balanced accuracy is what it would be at a prevalence of one half.
    """

    model: str
    about: str
    dataset: str
    films: int
    positives: int
    patients: int
    operating_point: str
    """The default one, at which the perturbed films are judged."""
    folds_by: FoldsBy
    folds: Sequence[Mapping[str, Any]]
    """For each fold: fold, films, positives, operating_points {name: {figure: value}}, robustness, thresholds, val_auc,
    best_epoch, chosen, seconds."""
    over_folds: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Operating point -> figure -> mean, sd (with K - 1), worst, worst_fold."""
    pooled: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Operating point -> figure -> value, low, high: all films at once, each decided at its own fold's threshold;
    intervals by bootstrap over patients. Its AUC ranks films of different folds by their calibrated probabilities."""
    under_shift: Mapping[str, Any]
    """`changes`: change -> auc, balanced_accuracy -> mean, sd, worst, worst_fold over folds; `auc` and
    `balanced_accuracy` over changes and folds: mean, worst, worst_change, worst_fold."""
    seconds: float
    report: str | None = None
    notice: str = DISCLAIMER

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def in_short(self) -> dict[str, Any]:
        """A summary for people."""
        over, pooled = self.over_folds[self.operating_point], self.pooled[self.operating_point]
        shift = self.under_shift["auc"]
        return {
            "model": self.model,
            "films": f"{self.films} of {self.patients} patients in {len(self.folds)} {DEALT[self.folds_by]}",
            **{name: _in_words(pooled[name], over[name]) for name in FIGURES},
            "auc_under_shift": f"{shift['mean']:.3f} on average over perturbed films, worst {shift['worst']:.3f}"
            f" ({shift['worst_change']}, fold {shift['worst_fold']})",
            "operating_point": self.operating_point,
            "seconds": self.seconds,
            "report": self.report,
            "notice": self.notice,
        }


def crossvalidate(
    dataset: str, recipe: Recipe, *, folds: Folds = DEFAULT_FOLDS, report: str | None = None
) -> CrossValidation:
    """Follow a recipe once for each fold and judge it on that fold; `report` names a page to write.

    The recipe's seed deals random folds, too. The finished folds of an interrupted run are not computed again.
    Raises `InputError` as `tuning.recipes.train.train` does, and for too few patients for so many folds.
    """
    started = time.perf_counter()
    entry(recipe.model)  # refuses names the zoo does not know
    require_weights(recipe)
    info = read_dataset_info(dataset)
    films = relabelled(join_films([load_films(dataset, split) for split in ("train", "val")]), recipe.classes)
    fold_of = deal(films, folds, recipe.training.seed)
    count = int(fold_of.max())
    kept = KeptFolds(info.fingerprint, recipe, folds)
    held: list[Fold] = []
    for number in range(1, count + 1):
        fold = kept.read(number)
        if fold is not None:
            log.info("fold %d of %d: taken from the run that was interrupted", number, count)
        else:
            log.info("fold %d of %d: %d films held out", number, count, int((fold_of == number).sum()))
            fold = hold_out(number, fold_of, films, recipe, info, dataset)
            kept.keep(fold)
        held.append(fold)
        log.info(
            "fold %d of %d: AUC %.4f, %.4f on average over perturbed films, %.1f s of training",
            *(number, count, auc(films.labels[fold.films], fold.probability), fold.robustness.mean_auc, fold.seconds),
        )
    result = summarise(held, films, recipe, dataset, by=folds.by, seconds=time.perf_counter() - started)
    if report:
        order = np.concatenate([fold.films for fold in held])
        probability = np.concatenate([fold.probability for fold in held])
        page = crossvalidation_page(
            result.to_json(), labels=films.labels[order], probability=probability, fold=fold_of[order]
        )
        result = replace(result, report=put_page(page, report))
    kept.forget()  # not before the page is written: its path may be wrong
    return result


def _in_words(pooled: Mapping[str, float], over: Mapping[str, float]) -> str:
    return (
        f"{pooled['value']:.3f} ({pooled['low']:.3f} to {pooled['high']:.3f});"
        f" over folds {over['mean']:.3f}, SD {over['sd']:.3f}, worst {over['worst']:.3f}"
    )


def set_apart(films: Films, seed: int) -> tuple[Films, Films]:
    """The films to train on, and those of other patients, a share of `VALIDATION`, to choose, calibrate and lock."""
    fractions = {"train": 1 - VALIDATION, "val": VALIDATION}
    sides = np.array(split_patients(films.patients.tolist(), strata(films), fractions=fractions, seed=seed))
    return films.take(sides == "train"), films.take(sides == "val")


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A recipe followed without the films of one fold."""

    trained: Trained
    val: Films
    """Of patients neither in the training nor in the fold: they chose the epoch, and serve to calibrate."""
    own: Films
    """The films of the fold."""
    seconds: float
    """Duration of the training."""


def follow(
    number: int,
    fold_of: npt.NDArray[np.int64],
    films: Films,
    recipe: Recipe,
    info: DatasetInfo,
    dataset: str,
) -> Followed:
    """Follow the recipe without the films of one fold. Raises what `tuning.recipes.fitting.fit_recipe` raises."""
    train, val = set_apart(films.take(fold_of != number), recipe.training.seed)
    started = time.perf_counter()
    trained = fit_recipe(recipe, TrainingFilms(uri=dataset, info=info, train=train, val=val))
    seconds = time.perf_counter() - started
    return Followed(trained=trained, val=val, own=films.take(fold_of == number), seconds=round(seconds, 1))


def hold_out(
    number: int,
    fold_of: npt.NDArray[np.int64],
    films: Films,
    recipe: Recipe,
    info: DatasetInfo,
    dataset: str,
) -> Fold:
    """Follow the recipe without the films of one fold, then score them, as they are and perturbed."""
    followed = follow(number, fold_of, films, recipe, info, dataset)
    best, device = followed.trained.best, choose_device(recipe.training.device)
    calibration = lock(best, followed.val, recipe.calibrate).calibration
    score = scorer(calibrated(best, calibration), device)
    return Fold(
        number=number,
        films=np.flatnonzero(fold_of == number),
        probability=score(followed.own.pixels),
        calibration=calibration,
        robustness=robustness(copies_of(score, followed.own), calibration.threshold),
        val_auc=best.best.val_auc,
        best_epoch=best.best.epoch,
        chosen=followed.trained.chosen,
        seconds=followed.seconds,
    )


def summarise(
    held: Sequence[Fold], films: Films, recipe: Recipe, dataset: str, *, by: FoldsBy = "random", seconds: float
) -> CrossValidation:
    """The figures of all folds, which together hold each film once."""
    disease = (films.labels != 0).astype(np.int64)
    points = list(held[0].calibration.operating_points)
    by_fold = [
        {
            point: _at(disease[fold.films], fold.probability, at)
            for point, at in fold.calibration.operating_points.items()
        }
        for fold in held
    ]
    return CrossValidation(
        model=recipe.model,
        about=recipe.about,
        dataset=dataset,
        films=len(films),
        positives=int(disease.sum()),
        patients=len(np.unique(films.patients)),
        operating_point=held[0].calibration.default,
        folds_by=by,
        folds=[
            {
                "fold": fold.number,
                "films": len(fold.films),
                "positives": int(disease[fold.films].sum()),
                "operating_points": at_points,
                "robustness": fold.robustness.to_json(),
                "thresholds": dict(fold.calibration.operating_points),
                "val_auc": fold.val_auc,
                "best_epoch": fold.best_epoch,
                "chosen": dict(fold.chosen),
                "seconds": fold.seconds,
            }
            for fold, at_points in zip(held, by_fold, strict=True)
        ],
        over_folds={
            point: {name: spread([at_points[point][name] for at_points in by_fold]) for name in FIGURES}
            for point in points
        },
        pooled={point: _pooled(held, point, disease, films.patients) for point in points},
        under_shift=_under_shift([fold.robustness for fold in held]),
        seconds=round(seconds, 1),
    )


def _at(disease: npt.NDArray[np.int64], probability: npt.NDArray[np.float32], threshold: float) -> dict[str, float]:
    values = figures(disease, probability, threshold)
    return {name: float(values[name][0]) for name in FIGURES}


def spread(values: Sequence[float]) -> dict[str, float]:
    """mean, sd (with K - 1), worst and worst_fold (from 1) of a figure over K folds."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)),
        "worst": float(min(values)),
        "worst_fold": int(np.argmin(values)) + 1,
    }


def _pooled(
    held: Sequence[Fold], point: str, disease: npt.NDArray[np.int64], patients: npt.NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    probability = np.empty(len(disease), dtype=np.float32)
    threshold = np.empty(len(disease))
    for fold in held:
        probability[fold.films] = fold.probability
        threshold[fold.films] = fold.calibration.operating_points[point]
    value = {name: float(values[0]) for name, values in figures(disease, probability, threshold).items()}
    drawn = figures(disease, probability, threshold, draws(patients))
    bounded = intervals(value, drawn, count_patients(disease, patients))
    return {name: asdict(bounded[name]) for name in (*FIGURES, "brier", "ece")}


def _under_shift(by_fold: Sequence[Robustness]) -> dict[str, Any]:
    names = ("auc", "balanced_accuracy")
    changes = {
        change: {name: spread([fold.changed[change][name] for fold in by_fold]) for name in names} for change in CHANGES
    }
    overall = {}
    for name in names:
        worst = min(changes, key=lambda change: changes[change][name]["worst"])
        overall[name] = {
            "mean": float(np.mean([spread[name]["mean"] for spread in changes.values()])),
            "worst": changes[worst][name]["worst"],
            "worst_change": worst,
            "worst_fold": changes[worst][name]["worst_fold"],
        }
    return {"films": sum(fold.films for fold in by_fold), "changes": changes, **overall}
