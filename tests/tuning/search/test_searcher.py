"""What Optuna's sampler is told of a trial that ends, now or in an earlier run of the search."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from tuning.search.mirror import to_optuna
from tuning.search.settings import SearchSettings
from tuning.search.suggestions import suggestions
from tuning.search.trial import OBJECTIVE, TIME
from tuning.spaces.space_file import space_for
from tuning.study.records import TrialRecord
from tuning.training.objectives import AUC, LATENCY, parse_objectives

SPACE = space_for(32, families=("cnn",))
SETTINGS = SearchSettings(trials=20)
BOTH = replace(SETTINGS, objectives=(AUC, LATENCY))


def report(value: float, epoch: int, **more: Any) -> dict[str, Any]:
    return {OBJECTIVE: value, TIME: epoch, "training_iteration": 1, "finished": False, "error": None, **more}


def as_told(settings: SearchSettings, *reports: dict[str, Any], error: bool = False) -> FrozenTrial:
    """The trial in the sampler's study after these reports, the last of which ended it."""
    searcher, _ = suggestions(SPACE, [], settings)
    searcher.suggest("one")
    for earlier in reports[:-1]:
        searcher.on_trial_result("one", earlier)
    for _ in range(2):  # Ray Tune may say so twice
        searcher.on_trial_complete("one", result=reports[-1] if reports else None, error=error)
    (trial,) = (trial for trial in searcher.study.trials if trial.state != TrialState.WAITING)
    return trial


def test_a_trial_that_was_stopped_is_pruned_at_the_value_and_epoch_it_reached() -> None:
    told = as_told(SETTINGS, report(0.7, 1), report(0.8, 2))
    assert (told.state, told.value, told.intermediate_values) == (TrialState.PRUNED, 0.8, {1: 0.7, 2: 0.8})


def test_a_trial_that_ended_by_itself_is_complete() -> None:
    told = as_told(SETTINGS, report(0.7, 1), report(0.8, 2), report(0.8, 2, finished=True))
    assert (told.state, told.value, told.intermediate_values) == (TrialState.COMPLETE, 0.8, {1: 0.7, 2: 0.8})


def test_a_trial_that_failed_is_failed() -> None:
    """By its parameters, after an epoch, and as its process died."""
    nothing = report(math.nan, 0, finished=True, error="InputError: no")
    assert as_told(SETTINGS, nothing).state == TrialState.FAIL
    assert as_told(SETTINGS, report(0.7, 1), report(0.7, 1, finished=True, error="no")).state == TrialState.FAIL
    assert as_told(SETTINGS, error=True).state == TrialState.FAIL
    assert as_told(BOTH, nothing).state == TrialState.FAIL


def test_of_two_objectives_a_stopped_trial_has_its_values() -> None:
    told = as_told(BOTH, report(0.7, 1, latency=3.0), report(0.8, 2, latency=3.0))
    assert (told.state, told.values, told.intermediate_values) == (TrialState.COMPLETE, [0.8, 3.0], {})


LIMITED = replace(SETTINGS, objectives=(AUC, "latency<=2.5"))


def test_a_network_that_is_too_slow_is_pruned_and_breaks_the_constraint() -> None:
    slow = report(math.nan, 0, latency=3.0, excess_ms=0.5, finished=True)
    told = as_told(LIMITED, slow)
    assert (told.state, told.value, told.intermediate_values) == (TrialState.PRUNED, None, {})
    assert told.constraints == {LATENCY: 0.5}
    reached = {"latency": 2.0, "excess_ms": -0.5}
    fast = as_told(LIMITED, report(0.7, 1, **reached), report(0.7, 1, finished=True, **reached))
    assert (fast.state, fast.value, fast.constraints) == (TrialState.COMPLETE, 0.7, {LATENCY: -0.5})


def test_the_copy_that_people_look_at_knows_the_constraint() -> None:
    slow = TrialRecord(
        trial_id="slow", number=0, status="pruned", model="cnn", parameters={"family": "cnn"}, auc=None, latency_ms=3.0,
        epochs=0, history=[], seconds=1.0, seed=0, finished_at=datetime(2026, 11, 28, tzinfo=UTC), kind="final",
    )  # fmt: skip
    trial = to_optuna(slow, SPACE, parse_objectives([AUC]), 2.5)
    assert (trial.state, trial.value, trial.constraints) == (TrialState.PRUNED, None, {LATENCY: 0.5})


@pytest.mark.parametrize("latency", [2.0, 3.0])
def test_a_resumed_search_knows_the_constraint_again(latency: float) -> None:
    searcher, _ = suggestions(SPACE, [], LIMITED)
    parameters = [searcher.suggest(str(number)) for number in range(3)][-1]
    assert parameters is not None
    trained = latency < 2.5
    earlier = TrialRecord(
        trial_id="earlier", number=2, status="complete" if trained else "pruned", model="cnn", parameters=parameters,
        auc=0.8 if trained else None, latency_ms=latency, epochs=int(trained),
        history=[{"epoch": 1, "val_auc": 0.8}] if trained else [], seconds=1.0, seed=0,
        finished_at=datetime(2026, 11, 28, tzinfo=UTC),
    )  # fmt: skip
    resumed, _ = suggestions(SPACE, [earlier], LIMITED)
    trial = resumed.study.trials[0]
    assert trial.state == (TrialState.COMPLETE if trained else TrialState.PRUNED)
    assert trial.constraints == {LATENCY: latency - 2.5}


@pytest.mark.parametrize(("settings", "state"), [(SETTINGS, TrialState.PRUNED), (BOTH, TrialState.COMPLETE)])
def test_a_resumed_search_tells_the_same_of_an_earlier_trial(settings: SearchSettings, state: TrialState) -> None:
    searcher, _ = suggestions(SPACE, [], settings)
    parameters = [searcher.suggest(str(number)) for number in range(3)][-1]  # after the baselines
    assert parameters is not None
    earlier = TrialRecord(
        trial_id="earlier",
        number=2,
        status="pruned",
        model="cnn",
        parameters=parameters,
        auc=0.8,
        latency_ms=3.0,
        epochs=2,
        history=[{"epoch": 1, "val_auc": 0.7}, {"epoch": 2, "val_auc": 0.8}],
        seconds=1.0,
        seed=0,
        finished_at=datetime(2026, 11, 27, tzinfo=UTC),
    )
    resumed, _ = suggestions(SPACE, [earlier], settings)
    assert [(trial.state, trial.values[0]) for trial in resumed.study.trials[:1]] == [(state, 0.8)]
