"""How many cores a trial gets where nobody says: a time budget must hold whole trainings.

Many trials of one core at a time try the most, but with a short budget the clock cuts off each of them, and the first
are the recipes, which are known to do well. So a search with a budget first takes the time of a few steps.
"""

import logging
import math
import time
from dataclasses import replace
from typing import Final

import ray

from models.errors import RayscanError
from models.films import Films, choose_films
from pipelines.capacity import Capacity
from tuning.search.known_trials import usual_trials
from tuning.search.settings import SearchSettings
from tuning.spaces.space import SearchSpace, TrialPlan, to_plan
from tuning.training.films import TrainingFilms
from tuning.training.judged_films import count_judged
from tuning.training.loop import fit
from tuning.training.objectives import AUC, parse_objective, parse_objectives

WHOLE: Final = 2
"""Trainings that each place of a search should get through: a recipe, and one that may be better."""
TIMED: Final = 3
"""Known trials that are timed; the slowest counts."""
_STEPS: Final = (2, 2, 8)
"""Steps of three short trainings. The first warms up; what the others take besides their steps falls out of their
difference."""
_FORWARD: Final = 1 / 3
"""What judging a film takes of what learning from it does: a forward pass of a forward and a backward one, which is
twice as dear."""

log = logging.getLogger("rayscan")


def cores_per_trial(settings: SearchSettings, space: SearchSpace, films: TrainingFilms, capacity: Capacity) -> int:
    """What a person asked for; else one core, or on a cluster without GPUs as many as a time budget makes advisable."""
    if settings.cpus_per_trial is not None:
        return settings.cpus_per_trial
    budget, largest = settings.time_budget_s, capacity.largest_cpus
    if budget is None or capacity.most_gpus or settings.workers_per_trial > 1 or largest < 2:
        return 1
    plans = [
        to_plan(
            point,
            preprocessing=films.info.preprocessing,
            epochs=settings.epochs,
            seed=settings.seed,
            threads=1,
            device="cpu",
            objective=parse_objectives(settings.objectives)[0].name,
        )
        for point in usual_trials(space)[:TIMED]
    ]
    held = ray.put(films)
    timing = ray.remote(num_cpus=1)(schedule_seconds)
    seconds = max((ray.get(timing.remote(plan, held)) for plan in plans), default=0.0)
    cores = cores_for(seconds, settings.search_share * budget, largest)
    if cores > 1:
        log.info(
            "one core takes %.0f minutes for %d epochs of a recipe, and the search has %.0f: trials get %d cores each;"
            " --cpus-per-trial says otherwise",
            seconds / 60,
            settings.epochs,
            budget / 60,
            cores,
        )
    return cores


def cores_for(seconds: float, budget: float, most: int) -> int:
    """The fewest cores with which a training that takes one core so many seconds ends `WHOLE` times within the budget.

    At most `most`. Taken is that two cores are twice as fast as one; they are not quite.
    """
    return min(max(1, math.ceil(WHOLE * seconds / budget)), most)


def schedule_seconds(plan: TrialPlan, films: TrainingFilms) -> float:
    """Seconds that all epochs of a plan take in this process, from short trainings on some of the films.

    What comes before the first step, as a head fitted first, is left out. A plan that cannot be trained takes none: the
    search tells of it when it is the plan's turn.
    """
    batch = plan.training.batch_size * plan.training.accumulate
    few = replace(plan.training, epochs=1, objective=AUC)
    taken = []
    try:
        for steps in _STEPS:
            some = _some(films.train, steps * batch)
            began = time.perf_counter()
            fit(plan.spec, some, _some(films.val, 1), few)
            taken.append((len(some), time.perf_counter() - began))
    except RayscanError as error:
        log.info("%s is not timed: %s", plan.spec.name, error)
        return 0.0
    _, (fewer, shorter), (more, longer) = taken
    each = (longer - shorter) / (more - fewer) if more > fewer and longer > shorter else longer / more
    judged = count_judged(len(films.val), copies=parse_objective(plan.training.objective).copies)
    return each * plan.training.epochs * (len(films.train) + _FORWARD * judged)


def _some(films: Films, most: int) -> Films:
    return films.take(choose_films(films.labels, most))
