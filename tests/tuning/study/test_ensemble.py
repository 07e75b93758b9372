"""A greedy ensemble takes what helps, and its gain is not taken from the films that chose it."""

import numpy as np
import numpy.typing as npt
import pytest

from models.statistics.metrics import auc
from tuning.study.ensemble import MOST, estimate_gain, greedy, mean, weights

FILMS = 400
LABELS = (np.arange(FILMS) % 3 != 0).astype(np.int64)
PATIENTS = np.arange(FILMS).astype(str)


def probabilities(shifts: list[float], seed: int = 0) -> npt.NDArray[np.float64]:
    """Models that err independently; the larger the shift, the better."""
    noise = np.random.default_rng(seed).normal(size=(len(shifts), FILMS))
    return 1 / (1 + np.exp(-(np.array(shifts)[:, None] * (LABELS - 0.5) + noise)))


def test_models_that_err_apart_are_better_together() -> None:
    found = probabilities([1.5, 1.6, 1.4, 0.0])
    members = greedy(LABELS, found)
    alone = [auc(LABELS, one) for one in found]
    assert members[0] == int(np.argmax(alone)), "it begins with the best"
    assert {0, 1, 2} <= set(members)
    assert 3 not in members
    assert auc(LABELS, mean(found, members)) > max(alone) + 0.03
    gain = estimate_gain(LABELS, PATIENTS, found)
    assert gain is not None
    assert gain.test.difference.low > 0
    assert gain.test.p_value < 0.01
    assert gain.test.difference.value == pytest.approx(gain.ensemble - gain.single)
    assert 2 <= gain.members <= 4


def test_the_gain_of_noise_is_none_whatever_the_films_that_chose_say() -> None:
    gains, claimed = [], []
    for seed in range(3):
        found = probabilities([0.0] * 25, seed)
        members = greedy(LABELS, found)
        claimed.append(auc(LABELS, mean(found, members)) - max(auc(LABELS, one) for one in found))
        gain = estimate_gain(LABELS, PATIENTS, found)
        assert gain is not None
        gains.append(gain.test.difference)
    assert min(claimed) > 0.02
    assert abs(np.mean([gain.value for gain in gains])) < 0.02
    assert all(gain.low < 0 < gain.high for gain in gains)


def test_a_trial_may_be_taken_several_times() -> None:
    found = probabilities([2.2, 1.0])
    members = greedy(LABELS, found)
    assert members.count(0) > members.count(1) > 0
    assert len(members) <= MOST
    shares = weights(members)
    assert next(iter(shares)) == 0
    assert sum(shares.values()) == pytest.approx(1)
    np.testing.assert_allclose(mean(found, members), sum(share * found[trial] for trial, share in shares.items()))


def test_one_alone_where_nothing_helps() -> None:
    perfect = np.where(LABELS, 0.9, 0.1).astype(float)
    found = np.stack([perfect, probabilities([1.0])[0]])
    assert greedy(LABELS, found) == [0]
    gain = estimate_gain(LABELS, PATIENTS, found)
    assert gain is not None
    assert (gain.test.difference.value, gain.test.p_value) == (0, 1)


def test_too_few_patients_tell_no_gain() -> None:
    assert estimate_gain(LABELS, np.full(FILMS, "one"), probabilities([1.0, 1.0])) is None
