"""One model from K: each is trained without one fold of the patients, and alone judges that fold.

So every film of train and val is scored once by a network that learned nothing of its patient. On these out-of-fold
predictions the model is calibrated, its operating points are locked and its figures computed: all films count, where a
validation split has a seventh of them. No film chooses an epoch, the last one's weights are kept. Folds of blocks, or
of sites, put the shift between these into the thresholds; see `tuning/recipes/dealing.py`.

The model is the mean of the K networks' logits (`models/networks/ensemble.py`), on which thresholds locked for one of
them hold. The mean of their weights ("Model soups", Wortsman et al. 2022) would be one network, but its logits are
others, on which these thresholds do not hold. A film costs K times the inference of one network.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.errors import InputError
from models.films import Films
from models.statistics.calibration import disease_log_odds
from models.statistics.metrics import auc
from pipelines.ingest.dataset import DatasetInfo
from tuning.recipes.dealing import deal
from tuning.recipes.fitting import fit_recipe
from tuning.recipes.folds import KeptModels
from tuning.recipes.promote import HeldOut
from tuning.recipes.recipe import Recipe
from tuning.training.films import TrainingFilms
from tuning.training.loop import Fitted

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class FoldModels:
    """The models of all folds, and the one made of them."""

    fitted: Fitted
    """The one; its `val_logits` are the out-of-fold predictions of all films."""
    held_out: Sequence[HeldOut]
    """Of each fold its model and its films; together all films, in the order of `films`."""
    films: Films
    kept: KeptModels
    """To be forgotten when the bundle is there."""


def fit_folds(recipe: Recipe, films: Films, info: DatasetInfo, dataset: str) -> FoldModels:
    """Follow a recipe once for each fold of all films; the model is an ensemble of these.

    The models of an interrupted run are not trained again. Raises `InputError` as `tuning.recipes.fitting.fit_recipe`
    and `deal` do, and for recipes with a grid.
    """
    folds = recipe.folds
    assert folds is not None
    if recipe.grid:
        raise InputError("a recipe with a [grid] has no model for each fold; choose a combination, or leave out folds")
    recipe = replace(recipe, training=replace(recipe.training, keep="last"))
    fold_of = deal(films, folds, recipe.training.seed)
    count = int(fold_of.max())
    kept = KeptModels(info.fingerprint, recipe, folds)
    held_out: list[HeldOut] = []
    for number in range(1, count + 1):
        own = films.take(fold_of == number)
        log.info("fold %d of %d: %d films held out", number, count, len(own))
        fitted = kept.read(number)
        if fitted is None:
            rest = films.take(fold_of != number)
            fitted = fit_recipe(recipe, TrainingFilms(uri=dataset, info=info, train=rest, val=own)).best
            kept.keep(number, fitted)
        held_out.append(HeldOut(fitted=fitted, films=own))
        odds = disease_log_odds(fitted.val_logits)
        log.info("fold %d of %d: AUC %.4f, %.1f s", number, count, auc(own.labels, odds), fitted.seconds)
    order = np.concatenate([np.flatnonzero(fold_of == number) for number in range(1, count + 1)])
    films = films.take(order)
    first = held_out[0].fitted
    return FoldModels(
        fitted=replace(
            first,
            spec=replace(first.spec, members=count),
            state_dict={
                f"members.{number}.{name}": value
                for number, one in enumerate(held_out)
                for name, value in one.fitted.state_dict.items()
            },
            val_logits=np.concatenate([one.fitted.val_logits for one in held_out]),
            seconds=sum(one.fitted.seconds for one in held_out),
        ),
        held_out=held_out,
        films=films,
        kept=kept,
    )
