"""Paired tests against published figures, independent implementations and their own promise under no difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.errors import InputError
from models.statistics.comparison import delong_test, holm, mcnemar


def naive_delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Difference and variance by the definition: all pairs, then the 2x2 covariances of the paper."""
    ill, well = labels == 1, labels != 1
    of_ill, of_well = [], []
    for score in (first, second):
        above = (score[ill][:, None] > score[well][None]) + 0.5 * (score[ill][:, None] == score[well][None])
        of_ill.append(above.mean(axis=1))
        of_well.append(above.mean(axis=0))
    covariance = np.cov(of_ill) / ill.sum() + np.cov(of_well) / well.sum()
    contrast = np.array([1, -1])
    return float(np.mean(of_ill[0]) - np.mean(of_ill[1])), float(contrast @ covariance @ contrast)


@pytest.mark.parametrize("seed", range(10))
def test_delong_is_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, 60)]
    first = np.round(labels + rng.normal(0, 1, 64), 1)
    second = np.round(labels * 0.5 + rng.normal(0, 1, 64), 1)
    value, variance = naive_delong(labels, first, second)
    found = delong_test(labels, first, second)
    assert found.difference.value == pytest.approx(value)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(value) / np.sqrt(variance)))
    assert found.difference.high - found.difference.low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)


def test_no_difference_is_found_five_times_in_a_hundred() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(600):
        labels = np.r_[np.zeros(80, int), np.ones(60, int)]
        shared = labels + rng.normal(0, 0.8, 140)
        first, second = (shared + rng.normal(0, 0.6, 140) for _ in range(2))
        found += delong_test(labels, first, second).p_value < 0.05
    assert 0.03 <= found / 600 <= 0.07


def test_models_that_rank_alike_do_not_differ() -> None:
    labels, score = np.array([0, 1, 0, 1, 1, 0]), np.array([0.1, 0.8, 0.3, 0.2, 0.9, 0.5])
    same = delong_test(labels, score, score**3)
    assert (same.difference.value, same.p_value) == (0, 1)
    with pytest.raises(InputError, match="two patients of each class"):
        delong_test(np.array([0, 0, 1]), np.zeros(3), np.zeros(3))


def calls(only_first: int, only_second: int, both: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.ones(only_first + only_second + both, dtype=int)
    first = np.r_[np.ones(only_first), np.zeros(only_second), np.ones(both)].astype(bool)
    second = np.r_[np.zeros(only_first), np.ones(only_second), np.ones(both)].astype(bool)
    return labels, first, second


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 15), (0, 6), (101, 59), (7, 7), (0, 0), (900, 800)])
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    labels, first, second = calls(only_first, only_second)
    found = mcnemar(labels, first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert found.p_value == pytest.approx(expected)


def test_a_healthy_film_counts_for_the_model_that_spares_it() -> None:
    found = mcnemar(np.array([0, 0, 1]), np.array([False, True, True]), np.array([True, True, False]))
    assert (found.only_first, found.only_second) == (2, 0)


@pytest.mark.parametrize("test", ["delong", "mcnemar"])
def test_films_of_a_patient_that_resemble_each_other_do_not_make_a_difference_of_chance(test: str) -> None:
    rng = np.random.default_rng(0)
    by_patient = by_film = 0
    for _ in range(400):
        patients = np.repeat(np.arange(60), 4)
        labels = patients % 2
        shared = labels + rng.normal(0, 0.8, 60)[patients]
        first, second = (shared + rng.normal(0, 0.6, 60)[patients] + rng.normal(0, 0.1, 240) for _ in range(2))
        if test == "delong":
            found = [delong_test(labels, first, second, of) for of in (patients.astype(str), None)]
        else:
            found = [mcnemar(labels, first > 0.5, second > 0.5, of) for of in (patients.astype(str), None)]
        by_patient += found[0].p_value < 0.05
        by_film += found[1].p_value < 0.05
    assert by_patient / 400 <= 0.08
    assert by_film / 400 > 0.15, "the films are no independent sample"


def test_the_exact_test_exchanges_patients() -> None:
    # one patient of three films for the first, one of one film for the second: chance gives 2 of 4 such sums or more
    labels = np.ones(4, int)
    found = mcnemar(labels, np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 1], bool), np.array(["a", "a", "a", "b"]))
    assert (found.only_first, found.only_second, found.p_value) == (3, 1, 1.0)
    alone = mcnemar(labels[:3], np.ones(3, bool), np.zeros(3, bool), np.array(["a", "b", "b"]))
    assert alone.p_value == 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_raises_each_by_the_tests_not_below_it(p_values: list[float]) -> None:
    raised = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    steps = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(p_values), 0, -1)))
    np.testing.assert_allclose(np.array(raised)[order], steps)
    assert all(after >= before for before, after in zip(p_values, raised, strict=True))
