"""Trials whose parameters are known beforehand: the recipes, the best of an earlier study, and finals of this one."""

import logging
from collections.abc import Sequence
from typing import Final

from models.errors import InputError
from models.spec import Scalar
from pipelines.storage import open_store
from tuning.recipes.recipe import Recipe, read_recipe, recipe_names
from tuning.spaces.space import BASELINES, TRAINING, SearchSpace
from tuning.study.records import TrialRecord, leaderboard
from tuning.study.store import read_study, read_trials

WARM: Final = 5
"""Trials of an earlier study that are tried first."""

log = logging.getLogger("rayscan")


def best_of(uri: str, space: SearchSpace, fingerprint: str) -> list[dict[str, Scalar]]:
    """The best `WARM` trials of the study at a URI as trials of this space, the best first.

    Those outside this space are skipped, which the log says; it also says whether the study is of the same films, those
    of this fingerprint. Raises `NotFoundError` where there is no study.
    """
    store = open_store(uri)
    earlier = read_study(store)
    if earlier.fingerprint == fingerprint:
        log.info("%s is a study of the same films (fingerprint %s)", uri, fingerprint)
    else:
        log.warning(
            "%s is a study of other films (fingerprint %s, these have %s): what was best there need not be best here",
            *(uri, earlier.fingerprint, fingerprint),
        )
    points: list[dict[str, Scalar]] = []
    ranked = [record for record in leaderboard(read_trials(store)) if record.kind != "baseline"]
    for record in ranked[:WARM]:
        try:
            points.append(space.translated(record.parameters))
        except InputError as error:
            log.warning("trial %d of %s is not tried here: %s", record.number, uri, error)
    log.info("%d of the %d best trials of %s will be tried first", len(points), len(ranked[:WARM]), uri)
    return points


def usual_trials(space: SearchSpace) -> list[dict[str, Scalar]]:
    """What is known to do well: the recipes that come with rayscan, where they lie in this space.

    On films as large as this space has, and for as many epochs as its trials have. A family without such a recipe
    begins with its defaults.
    """
    recipes = [read_recipe(name) for name in recipe_names()]
    points = [point for recipe in recipes if (point := _as_trial(recipe, space)) is not None]
    known = {point["family"] for point in points}
    return points + [point for point in space.usual() if point["family"] not in known]


def _as_trial(recipe: Recipe, space: SearchSpace) -> dict[str, Scalar] | None:
    """A recipe as a trial of this space; None where it lies outside."""
    family = recipe.model
    if family not in space.families or family in BASELINES or recipe.grid or recipe.learn != "all":
        return None
    values = {**recipe.parameters, **{name: getattr(recipe.training, name) for name in TRAINING}}
    values["normalise"] = recipe.normalise
    if recipe.weights is not None:
        if not space.weights_of(family):
            return None
        values |= {"weights": space.weights_of(family)[0], "head_first": recipe.head_first, "l2": recipe.head.l2}
    sides = space.branch(family, pretrained=recipe.weights is not None).get("resolution")
    if sides is not None:
        largest = max(int(side) for side in sides[1].edges())
        values["resolution"] = largest if recipe.size is None else min(recipe.size, largest)
    try:
        return space.translated(space.point(family, values))
    except InputError:
        return None


def final_trials(records: Sequence[TrialRecord], size: int, count: int) -> list[dict[str, Scalar]]:
    """Of the `count` best trials, those on films of less than `size` pixels: their parameters with `size` instead.

    Left out are those that were trained so already.
    """
    done = [record.parameters for record in records if record.kind == "final"]
    ranked = [record for record in leaderboard(records) if record.kind == "search"]
    points: list[dict[str, Scalar]] = []
    for record in ranked[:count]:
        sides = [name for name in record.parameters if name == "resolution" or name.endswith("_resolution")]
        point: dict[str, Scalar] = {**record.parameters, **dict.fromkeys(sides, size)}
        if any(record.parameters[name] != size for name in sides) and point not in done:
            points.append(point)
    return points
