"""Curves are short, and lie where the whole curve lies."""

import json
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.statistics.curves import (
    NEAR,
    POINTS,
    Curve,
    curves,
    distances,
    precision_recall_curve,
    roc_curve,
    thinned,
)
from models.statistics.metrics import auc, wilson

Films = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def films(count: int, gap: float, *, levels: int | None = None, seed: int = 0) -> Films:
    """Labels and probabilities; `levels` so many values they take."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    probability = 1 / (1 + np.exp(-rng.normal(gap * labels, 1)))
    return labels, (probability if levels is None else (probability * levels).round() / levels).astype(np.float32)


def farthest(points: Curve, line: Curve) -> float:
    """How far the farthest of these points lies from a line of straight pieces."""
    nearest = [distances(points, start, end) for start, end in pairwise(line)]
    return float(np.min(nearest, axis=0).max())


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.21, 0.7, 1.0])), min_size=2, max_size=40))
def test_the_area_under_the_roc_curve_is_the_auc(pairs: list[tuple[bool, float]]) -> None:
    labels = np.array([0, 1, *(int(label) for label, _ in pairs)])
    probability = np.array([0.3, 0.6, *(p for _, p in pairs)], dtype=np.float32)
    curve = roc_curve(labels, probability)
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(auc(labels, probability))
    assert (*curve[0], *curve[-1]) == (0, 0, 1, 1)


def test_precision_is_level_up_to_the_sensitivity_of_each_threshold() -> None:
    labels, probability = np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.8, 0.4, 0.1], np.float32)
    # called: 1 of 1 right, then 2 of 3, 3 of 4, 3 of 5
    found = precision_recall_curve(labels, probability)
    third = 1 / 3
    expected = [(0, 1), (third, 1), (third, 2 / 3), (2 / 3, 2 / 3), (2 / 3, 0.75), (1, 0.75), (1, 0.6), (1, 0.6)]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("curve", [roc_curve, precision_recall_curve], ids=["roc", "precision-recall"])
@pytest.mark.parametrize(
    ("count", "gap"), [(785, 3.5), (20_000, 1.5), (20_000, 0.0), (20_000, 4.0)], ids=["small", "fair", "guess", "good"]
)
def test_a_thinned_curve_lies_where_the_whole_one_does(curve: object, count: int, gap: float) -> None:
    assert callable(curve)
    whole = curve(*films(count, gap))
    short = thinned(whole)
    assert len(short) <= POINTS < len(whole)
    assert (short[[0, -1]] == whole[[0, -1]]).all()
    assert {tuple(point) for point in short} <= {tuple(point) for point in whole}
    assert farthest(whole, short) < 0.004, "of an axis: a line two pixels wide in a chart 500 wide covers it"
    area, thin = (np.trapezoid(points[:, 1], points[:, 0]) for points in (whole, short))
    assert thin == pytest.approx(area, abs=1e-3)


def test_a_short_curve_keeps_its_corners_and_nothing_between_them() -> None:
    whole = roc_curve(*films(4000, 2.0, levels=10))
    assert farthest(whole, thinned(whole)) < NEAR
    line = np.linspace((0, 0), (1, 1), 500)
    assert thinned(line).tolist() == [[0, 0], [1, 1]]
    bent = np.concatenate([line, [[1, 1 + 3 * NEAR]]])
    assert len(thinned(bent)) == 3
    assert len(thinned(whole, most=4)) == 4


def test_an_entry_is_small_and_counts_every_film() -> None:
    labels, probability = films(20_000, 2.0)
    found = curves(labels, probability)
    assert len(json.dumps(found, allow_nan=False)) < 12_000
    histogram = found["histogram"]
    assert (sum(histogram["without"]), sum(histogram["with"])) == ((labels == 0).sum(), (labels == 1).sum())
    low = ((probability >= 0.48) & (probability < 0.52) & (labels == 1)).sum()
    assert histogram["with"][12] == low
    groups = found["calibration"]
    assert [group["n"] for group in groups] == [2000] * 10
    order = np.argsort(probability)[:2000]
    share = wilson(int(labels[order].sum()), 2000)
    assert groups[0]["probability"] == pytest.approx(probability[order].mean(), rel=1e-5)
    assert groups[0]["diseased"] == {"value": share.value, "low": share.low, "high": share.high}


def test_films_of_one_probability_are_one_threshold_and_one_group() -> None:
    found = curves(np.array([0, 1, 1, 1]), np.full(4, 0.75, np.float32))
    assert found["roc"] == [[0, 0], [1, 1]]
    assert found["precision_recall"] == [[0, 0.75], [1, 0.75]]
    assert [group["n"] for group in found["calibration"]] == [4]
