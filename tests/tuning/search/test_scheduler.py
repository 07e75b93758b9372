"""Who is stopped for whom."""

from functools import partial

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tuning.search.scheduler import NO_PAST, FamilyScheduler, Past
from tuning.search.trial import TAKEN_UP
from tuning.spaces.space import KIND


class Race:
    """Trials reporting one after the other to a scheduler that compares them after their first epoch."""

    def __init__(self, past: Past = NO_PAST) -> None:
        league = partial(
            ASHAScheduler, time_attr="epoch", metric="auc", mode="max", max_t=9, grace_period=1, reduction_factor=3
        )
        self.scheduler = FamilyScheduler(league, past)

    def report(self, auc: float, **config: object) -> str:
        trial = Trial("none", config=config, stub=True)
        self.scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return self.scheduler.on_trial_result(None, trial, {"epoch": 1, "auc": auc})  # type: ignore[arg-type]


def test_a_family_is_not_judged_by_another() -> None:
    race = Race()
    assert [race.report(auc, family="mlp") for auc in (0.97, 0.98, 0.99)] == [TrialScheduler.CONTINUE] * 3
    assert race.report(0.60, family="cnn") == TrialScheduler.CONTINUE
    assert race.report(0.55, family="cnn") == TrialScheduler.STOP
    assert race.report(0.96, family="mlp") == TrialScheduler.STOP


@pytest.mark.parametrize("auc", [0.1, 0.999])
def test_a_baseline_is_no_rival_and_never_stopped(auc: float) -> None:
    race = Race()
    race.report(0.7, family="cnn")
    assert race.report(auc, family="cnn", **{KIND: "baseline"}) == TrialScheduler.CONTINUE
    assert race.report(0.8, family="cnn") == TrialScheduler.CONTINUE


def history(*aucs: float) -> list[dict[str, float]]:
    return [{"val_auc": auc} for auc in aucs]


def test_the_bar_stands_where_it_stood_before_an_interruption() -> None:
    finished = [("a", "cnn", history(0.7)), ("b", "cnn", history(0.8, 0.75)), ("c", "mlp", history(0.99))]
    race = Race(Past(finished=finished, taken_up={}))
    assert race.report(0.72, family="cnn") == TrialScheduler.STOP
    assert race.report(0.9, family="cnn") == TrialScheduler.CONTINUE
    assert Race().report(0.72, family="cnn") == TrialScheduler.CONTINUE


def test_a_trial_that_is_taken_up_is_not_judged_again_where_it_had_passed() -> None:
    finished = [("a", "cnn", history(0.9)), ("b", "cnn", history(0.8))]
    race = Race(Past(finished=finished, taken_up={"old": history(0.6)}))
    config = {"family": "cnn", TAKEN_UP: {"trial_id": "old", "number": 3, "seed": 0}}
    assert race.report(0.6, **config) == TrialScheduler.CONTINUE
    assert race.report(0.6, family="cnn") == TrialScheduler.STOP
