"""Which parameter mattered is found from the rows of the trials alone."""

from dataclasses import replace
from typing import Any

import numpy as np

from tests.tuning.study.test_store import record
from tuning.study.importance import LEAST, importance
from tuning.study.records import TrialRecord


def trials(count: int) -> list[TrialRecord]:
    """The learning rate decides, the depth of a cnn a little, the rest nothing."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        rate = float(10 ** rng.uniform(-4, -1))
        parameters: dict[str, Any] = {"family": "cnn", "learning_rate": rate, "augment": float(rng.uniform(0, 1))}
        parameters |= {"batch_size": int(rng.choice([16, 32])), "resolution": 64}
        auc = 0.9 - 0.05 * (np.log10(rate) + 2.5) ** 2 + 0.002 * rng.normal()
        if number % 2:
            parameters |= {"family": "cnn2", "cnn_depth": int(rng.choice([3, 5]))}
            auc += 0.02 * (parameters["cnn_depth"] == 5)
        found.append(record(number, float(auc), parameters=parameters))
    return found


def test_what_decides_is_first() -> None:
    found = importance(trials(60))
    assert found is not None
    assert found.trials == 60
    for shares in (found.fanova, found.ped_anova):
        assert next(iter(shares)) == "learning_rate"
        assert shares["learning_rate"] > 0.4
        assert abs(sum(shares.values()) - 1) < 1e-6
        assert "resolution" not in shares, "it did not vary"
    assert "cnn_depth" not in found.fanova, "not every trial has it"
    assert "cnn_depth" in found.ped_anova


def test_few_trials_tell_nothing() -> None:
    few = trials(LEAST - 1)
    baseline = record(100, 0.5, kind="baseline", parameters={"family": "mlp"})
    failed = record(101, None, "failed", parameters=few[0].parameters)
    assert importance([*few, baseline, failed]) is None
    assert importance(trials(LEAST)) is not None


def test_equal_trials_tell_nothing() -> None:
    assert importance([replace(one, auc=0.5) for one in trials(LEAST)]) is None
