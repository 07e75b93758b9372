"""How many cores a trial gets where nobody says: a time budget must hold whole trainings.

Many trials of one core at a time try the most, but with a short budget the clock cuts off each of them, and the first
are the recipes, which are known to do well. So a search with a budget first takes the time of a few steps.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import ray

from models.errors import RayscanError
from models.films import Films, choose_films
from pipelines.capacity import Capacity
from tuning.search.known_trials import usual_trials
from tuning.search.room import Waiting
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
TIMING_SHARE: Final = 0.1
LEAST_SECONDS: Final = 60.0
"""The timing is given up after this share of the time budget, or after so many seconds if that is longer: a search that
waits for a core must not wait here without end."""
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
    seconds = _timed(plans, films, within=max(LEAST_SECONDS, TIMING_SHARE * budget))
    if seconds is None:
        log.info("no core was free to time the recipes on: a trial gets one core")
        return 1
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


def _timed(plans: Sequence[TrialPlan], films: TrainingFilms, within: float) -> float | None:
    """What the slowest of these plans takes on one core of the cluster; None where that is not found out in time."""
    held, waiting, end = ray.put(films), Waiting(), time.monotonic() + within
    timing = ray.remote(num_cpus=1)(schedule_seconds)
    slowest = 0.0
    for plan in plans:  # one after another: two would take the memory's speed from each other
        task = timing.remote(plan, held)
        while not ray.wait([task], timeout=1)[0]:
            if time.monotonic() > end:
                ray.cancel(task, force=True)
                return None
            waiting.look(1, int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
        slowest = max(slowest, ray.get(task))
    return slowest


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
