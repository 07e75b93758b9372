import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, roc_auc_score

from models.errors import InputError
from models.statistics.metrics import Z, auc, auc_interval, ece, evaluate, sensitivity_by_group, wilson


def naive_delong(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> tuple[float, float]:
    """AUC and its variance from the m x n table of comparisons (DeLong et al. 1988, eq. 3 to 6)."""
    table = [
        [1.0 if positive > negative else 0.5 if positive == negative else 0.0 for negative in scores[labels == 0]]
        for positive in scores[labels == 1]
    ]
    wins = np.array(table)
    area = wins.mean()
    of_positive, of_negative = wins.mean(axis=1), wins.mean(axis=0)
    variance = ((of_positive - area) ** 2).sum() / (len(of_positive) - 1) / len(of_positive)
    variance += ((of_negative - area) ** 2).sum() / (len(of_negative) - 1) / len(of_negative)
    return float(area), float(variance)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Labels of both classes, scores on a coarse grid so that ties abound."""
    labels = draw(st.lists(st.integers(0, 1), min_size=4, max_size=40).filter(lambda x: 1 < sum(x) < len(x) - 1))
    scores = draw(st.lists(st.integers(0, 12), min_size=len(labels), max_size=len(labels)))
    return np.array(labels), np.array(scores) / 12


@settings(deadline=None)
@given(outcomes())
def test_auc_and_interval_against_sklearn_and_a_naive_delong(
    case: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]],
) -> None:
    labels, scores = case
    area, variance = naive_delong(labels, scores)
    found = auc_interval(labels, scores)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert found.value == pytest.approx(area)
    assert 0 <= found.low <= found.value <= found.high <= 1
    if variance > 1e-12 and 0 < area < 1:
        slack = Z * math.sqrt(variance) / (area * (1 - area))
        assert math.log(found.high / (1 - found.high)) == pytest.approx(math.log(area / (1 - area)) + slack)
        assert math.log(found.low / (1 - found.low)) == pytest.approx(math.log(area / (1 - area)) - slack)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(1.5 / 2))  # two normals 1.5 apart
    labels = np.repeat([0, 1], [60, 90])
    covered = 0
    for _ in range(400):
        interval = auc_interval(labels, rng.normal(size=150) + 1.5 * labels)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_perfect_separation_still_has_an_interval() -> None:
    labels = np.repeat([0, 1], [20, 50])
    interval = auc_interval(labels, labels.astype(float))
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low == pytest.approx(wilson(20, 20).low)
    assert auc_interval(labels, 1.0 - labels).high == pytest.approx(wilson(0, 20).high)


def test_equal_scores_have_an_auc_of_one_half() -> None:
    interval = auc_interval(np.array([0, 1, 1, 0]), np.full(4, 0.7))
    assert interval.value == 0.5
    assert interval.low < 0.5 < interval.high


def test_one_film_of_a_class_is_enough_for_an_interval() -> None:
    interval = auc_interval(np.array([0, 1, 0, 0]), np.array([0.1, 0.5, 0.6, 0.2]))
    assert 0 <= interval.low < 2 / 3 < interval.high <= 1


def test_one_class_or_missing_scores_are_refused() -> None:
    with pytest.raises(InputError, match="3 with disease and 0 without"):
        auc(np.ones(3, dtype=int), np.arange(3.0))
    with pytest.raises(InputError, match="finite"):
        auc(np.array([0, 1]), np.array([0.1, np.nan]))


def test_wilson_against_published_figures() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(k, n)
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)


def test_evaluation_against_sklearn() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    probability = np.clip(rng.normal(0.3 + 0.4 * labels, 0.2), 0, 1).astype(np.float32)
    found = evaluate(labels, probability, 0.5)
    assert [found.tn, found.fp, found.fn, found.tp] == confusion_matrix(labels, probability >= 0.5).ravel().tolist()
    assert found.auc.value == pytest.approx(roc_auc_score(labels, probability))
    assert found.accuracy.value == pytest.approx(accuracy_score(labels, probability >= 0.5))
    assert found.brier == pytest.approx(brier_score_loss(labels, probability))
    assert found.sensitivity.value == found.tp / found.positives
    assert json.loads(json.dumps(found.to_json()))["specificity"]["value"] == found.tn / (found.n - found.positives)


def test_calibration_error_of_honest_and_dishonest_probabilities() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(20_000)
    labels = (rng.random(20_000) < probability).astype(int)
    assert ece(labels, probability) < 0.02
    assert ece(labels, probability**3) > 0.1


def test_calibration_error_does_not_depend_on_the_order_of_ties() -> None:
    labels = np.repeat([0, 1], [25, 75])
    assert ece(labels, np.full(100, 0.75)) == pytest.approx(0)
    assert ece(labels[::-1], np.full(100, 0.65)) == pytest.approx(0.1)


def test_sensitivity_by_subtype() -> None:
    labels = np.array([1, 1, 1, 0, 1])
    groups = np.array(["virus", "bacteria", "virus", "", ""])
    found = sensitivity_by_group(labels, np.array([0.9, 0.9, 0.1, 0.9, 0.9]), groups, 0.5)
    assert {name: (n, share.value) for name, (n, share) in found.items()} == {"bacteria": (1, 1), "virus": (2, 0.5)}
