"""`rayscan train`: one model on one data set, by a recipe, to a bundle."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

import safetensors.torch

from models.films import join_films
from models.networks.zoo import entry
from pipelines.storage import open_store
from tuning.recipes.fitting import fit_recipe, relabelled
from tuning.recipes.fold_models import FoldModels, fit_folds
from tuning.recipes.promote import promote
from tuning.recipes.recipe import Recipe, require_weights
from tuning.training.films import read_training_films
from tuning.training.loop import StateDict

UNPROMOTED: Final = "unpromoted.safetensors"
"""Beside a bundle: the weights of a model whose promotion failed."""

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """The result of a training, on the validation films."""

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

    A recipe with folds deals the films of both to these instead.

    Every combination of a grid is trained, and `recipe.select` says which one is kept; the results of the others are in
    the bundle's lineage. `show_films` is that of `tuning.recipes.promote.promote`. Raises `InputError` for an unknown
    model, a size above the data set's, or weights that are needed and not named.
    """
    started = time.perf_counter()
    entry(recipe.model)  # refuses names the zoo does not know
    require_weights(recipe)
    open_store(out).require_writable()
    films = read_training_films(dataset)
    films = replace(films, train=relabelled(films.train, recipe.classes), val=relabelled(films.val, recipe.classes))
    lineage: dict[str, object] = {"made_by": "rayscan train", "recipe": _recorded(recipe)}
    together: FoldModels | None = None
    if recipe.folds is None:
        trained = fit_recipe(recipe, films)
        fitted = trained.best
        if recipe.grid:
            lineage |= {"grid": trained.tried, "chosen": dict(trained.chosen)}
        if trained.selection:
            lineage["selection"] = trained.selection
    else:
        together = fit_folds(recipe, join_films([films.train, films.val]), films.info, films.uri)
        fitted = together.fitted
        lineage["folds"] = str(recipe.folds)
        films = replace(films, train=together.films, val=together.films)
    with kept_until_promoted(out, fitted.state_dict):
        bundle = promote(
            fitted,
            films,
            out,
            lineage=lineage,
            calibrate=recipe.calibrate,
            held_out=together.held_out if together else (),
            intended_use=recipe.intended_use,
            show_films=show_films,
        )
    if together:
        together.kept.forget()
    metrics = bundle.evaluation["val"]["metrics"]
    return TrainSummary(
        bundle=out,
        model_id=bundle.model_id,
        model=recipe.model,
        **{name: metrics[name]["value"] for name in ("auc", "accuracy", "sensitivity", "specificity")},
        auc_low=metrics["auc"]["low"],
        auc_high=metrics["auc"]["high"],
        operating_point=bundle.calibration.default,
        best_epoch=fitted.best.epoch,
        seconds=round(time.perf_counter() - started, 1),
    )


@contextmanager
def kept_until_promoted(out: str, weights: StateDict) -> Iterator[None]:
    """Keep trained weights beside where their bundle will be, and remove them when it is there.

    A promotion that fails, for whatever reason, must not cost the training.
    """
    store = open_store(out)
    store.put(UNPROMOTED, safetensors.torch.save({name: value.contiguous() for name, value in weights.items()}))
    try:
        yield
    except BaseException:
        log.error("the model was trained but not promoted; its weights are kept at %s", store.uri(UNPROMOTED))
        raise
    store.delete(UNPROMOTED)


def _recorded(recipe: Recipe) -> dict[str, object]:
    return {key: value for key, value in asdict(recipe).items() if key != "training"}  # which is recorded anyway
