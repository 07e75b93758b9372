"""Operating points keep on new films what they promise, are the best that do, and stand between films."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from models.errors import InputError
from models.statistics.operating_points import CONFIDENCE, PLATEAU, operating_points


@st.composite
def scored(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    seed, films = draw(st.integers(0, 2**31)), draw(st.integers(2, 900))
    levels = draw(st.sampled_from([3, 50, 10_000]))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.append(rng.integers(0, 2, films), [0, 1]))
    scores = np.round(rng.normal(0.35 + 0.3 * labels, 0.12).clip(0, 1) * levels) / levels
    return labels, scores.astype(np.float32)


def promised(wrong: int, films: int) -> bool:
    """Whether a share of 2 % would give so few wrong decisions in one of ten sets at most; true if there are none."""
    return wrong == 0 or bool(binom.cdf(wrong, films, 0.02) <= 1 - CONFIDENCE)


@settings(deadline=None)
@given(scored())
def test_they_are_the_best_that_keep_their_promise(case: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]) -> None:
    labels, probability = case
    ill, well = labels == 1, labels == 0
    points = operating_points(labels, probability).thresholds

    def wrong(threshold: float) -> tuple[int, int]:
        called = probability.astype(np.float64) >= threshold
        return int((ill & ~called).sum()), int((well & called).sum())

    every = [wrong(float(level)) for level in np.unique(probability)] + [(int(ill.sum()), 0)]
    missed, alarms = wrong(points["rule_out"])
    assert promised(missed, ill.sum())
    assert alarms == min(false for lost, false in every if promised(lost, ill.sum()))
    missed, alarms = wrong(points["rule_in"])
    assert promised(alarms, well.sum())
    assert missed == min(lost for lost, false in every if promised(false, well.sum()))
    missed, alarms = wrong(points["balanced"])
    loss = min(lost / ill.sum() + false / well.sum() for lost, false in every)
    assert missed / ill.sum() + alarms / well.sum() <= loss + PLATEAU + 1e-9
    for threshold in points.values():
        in_single = probability >= np.float32(threshold)
        assert (in_single == (probability.astype(np.float64) >= threshold)).all()


@pytest.mark.parametrize("films", [300, 2000])
def test_promises_hold_on_new_films_in_nine_of_ten_cases(films: int) -> None:
    rng = np.random.default_rng(0)
    kept = {"rule_out": 0, "rule_in": 0}
    for _ in range(400):
        labels = np.repeat([0, 1], films)
        found = operating_points(labels, rng.normal(2.0 * labels).astype(np.float32) / 100 + 0.5)
        at = {name: (threshold - 0.5) * 100 for name, threshold in found.thresholds.items()}
        # of all films that there could be
        kept["rule_out"] += 1 - _below(at["rule_out"] - 2) >= 0.98
        kept["rule_in"] += _below(at["rule_in"]) >= 0.98
    assert all(times / 400 >= CONFIDENCE - 0.03 for times in kept.values()), kept
    assert all(times / 400 <= 0.99 for times in kept.values()), "no more is given away than must be"


def _below(z: float) -> float:
    from scipy.stats import norm

    return float(norm.cdf(z))


def test_films_of_a_patient_do_not_count_as_many_patients() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 600)
    probability = rng.normal(0.4 + 0.2 * labels, 0.08).astype(np.float32)
    alone = operating_points(labels, probability)
    families = operating_points(labels, probability, np.repeat(np.arange(300), 4).astype(str))
    assert families.thresholds["rule_out"] < alone.thresholds["rule_out"]
    assert families.thresholds["rule_in"] > alone.thresholds["rule_in"]
    assert families.promises["rule_out"].bound >= 0.98


def test_too_few_patients_promise_less_and_say_so() -> None:
    labels = np.repeat([0, 1], 50)
    found = operating_points(labels, np.linspace(0, 1, 100))
    assert found.thresholds == pytest.approx({"rule_out": 0.5, "balanced": 0.5, "rule_in": 0.5}, abs=0.02)
    # with none missed of 50, 0.1 ** (1 / 51)
    assert found.promises["rule_out"].bound == pytest.approx(0.1 ** (1 / 51), abs=1e-3)
    assert found.promises["rule_in"].to_json()["bound"] < 0.98


def test_the_balanced_point_is_the_middle_of_those_that_are_as_good() -> None:
    healthy, diseased = np.linspace(0.0, 0.3, 40), np.linspace(0.7, 1.0, 40)
    labels = np.repeat([0, 1], 40)
    found = operating_points(labels, np.concatenate([healthy, diseased]))
    assert found.thresholds["balanced"] == pytest.approx(0.5)
    # a film of each kind in the gap: two ways to cut are as good, and one film in the middle is not to decide alone
    tied = operating_points(np.append(labels, [1, 0]), np.concatenate([healthy, diseased, [0.4, 0.6]]))
    assert 0.3 < tied.thresholds["balanced"] < 0.7


def test_thresholds_stand_between_films() -> None:
    points = operating_points(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert points.thresholds == pytest.approx({"rule_out": 0.5, "balanced": 0.5, "rule_in": 0.5})


def test_they_need_both_classes() -> None:
    with pytest.raises(InputError, match="both classes"):
        operating_points(np.ones(3, dtype=int), np.arange(3) / 3)
