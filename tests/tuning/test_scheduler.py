"""Who is stopped for whom."""

from functools import partial

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tuning.scheduler import FamilyScheduler
from tuning.space import BASELINE


class Race:
    """Trials reporting one after the other to a scheduler that compares them after their first epoch."""

    def __init__(self) -> None:
        league = partial(
            ASHAScheduler, time_attr="epoch", metric="auc", mode="max", max_t=9, grace_period=1, reduction_factor=3
        )
        self.scheduler = FamilyScheduler(league)

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
    assert race.report(auc, family="cnn", **{BASELINE: True}) == TrialScheduler.CONTINUE
    assert race.report(0.8, family="cnn") == TrialScheduler.CONTINUE
