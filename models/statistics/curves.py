"""The curves of a test as plain JSON, short enough to stand in every bundle and ledger: what pages draw from.

Of many films a curve has as many corners; its thinned copy lies nowhere farther from it than a line is wide
(`tests/models/statistics/test_curves.py`).
"""

from dataclasses import asdict
from heapq import heappop, heappush
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.statistics.metrics import Labels, Scores, wilson

POINTS: Final = 200
"""Of a curve, at most."""
NEAR: Final = 5e-4
"""Of an axis; no page shows a curve so wide that this is a pixel."""
CALIBRATION_GROUPS: Final = 10
HISTOGRAM_BINS: Final = 25

Curve = npt.NDArray[np.float64]
"""Points [N, 2], joined by straight lines."""


def curves(labels: Labels, probability: Scores) -> dict[str, Any]:
    """What the charts of labels [N] (0 for no disease) and probabilities of disease [N] are drawn from, as plain JSON.

    {"roc": [[false alarms, sensitivity]], "precision_recall": [[sensitivity, positive predictive value]],
    "calibration": [{"n", "probability" (mean), "diseased": {"value", "low", "high"}}],
    "histogram": {"without": [films per bin], "with": [...]} in HISTOGRAM_BINS even bins from 0 to 1}.
    Both classes must be there.
    """
    return {
        "roc": _points(roc_curve(labels, probability)),
        "precision_recall": _points(precision_recall_curve(labels, probability)),
        "calibration": _calibration(labels, probability),
        "histogram": {
            name: np.histogram(probability[side].clip(0, 1), HISTOGRAM_BINS, (0, 1))[0].tolist()
            for name, side in (("without", labels == 0), ("with", labels != 0))
        },
    }


def roc_curve(labels: Labels, probability: Scores) -> Curve:
    """Share of false alarms and sensitivity at every threshold, from none called positive to all."""
    order = np.argsort(-probability, kind="stable")
    disease = labels[order] != 0
    # films of equal probability are called together
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    hits = np.concatenate([[0], np.cumsum(disease)[last]])
    called = np.concatenate([[0], last + 1])
    return np.stack([(called - hits) / (~disease).sum(), hits / disease.sum()], axis=1)


def precision_recall_curve(labels: Labels, probability: Scores) -> Curve:
    """Sensitivity and positive predictive value at every threshold, in steps.

    Up to the sensitivity of a threshold the curve is level: between two thresholds there is no test to be had, and a
    straight line would promise one (Davis & Goadrich 2006, sec. 3).
    """
    false_alarms, sensitivity = roc_curve(labels, probability).T
    share = float((labels != 0).mean())
    found, alarms = sensitivity[1:] * share, false_alarms[1:] * (1 - share)
    precision = np.repeat(found / (found + alarms), 2)
    return np.stack([np.repeat(sensitivity, 2)[1:-1], precision], axis=1)


def thinned(curve: Curve, most: int = POINTS) -> Curve:
    """The points [M, 2] of a curve that shape it most, its ends among them: `most` or as many as come within NEAR.

    Douglas & Peucker 1973, the farthest point first.
    """
    kept = {0, len(curve) - 1}
    waiting = [_farthest(curve, 0, len(curve) - 1)]
    while waiting and len(kept) < most:
        distance, at, start, end = heappop(waiting)
        if -distance < NEAR:
            break
        kept.add(at)
        heappush(waiting, _farthest(curve, start, at))
        heappush(waiting, _farthest(curve, at, end))
    return curve[sorted(kept)]


def distances(points: Curve, start: npt.NDArray[np.float64], end: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far points [N, 2] lie from the straight line between two points [2]."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    offset: npt.NDArray[np.float64] = np.hypot(*(points - start - share[:, None] * along).T)
    return offset


def _farthest(curve: Curve, start: int, end: int) -> tuple[float, int, int, int]:
    """Of the points between two of a curve: distance (negative, for the heap), its index, and the two."""
    if end - start < 2:
        return 0.0, start, start, end
    found = distances(curve[start + 1 : end], curve[start], curve[end])
    at = int(found.argmax())
    return -float(found[at]), start + 1 + at, start, end


def _points(curve: Curve) -> list[list[float]]:
    points: list[list[float]] = thinned(curve).round(6).tolist()
    return points


def _calibration(labels: Labels, probability: Scores) -> list[dict[str, Any]]:
    """Groups of about equally many films, of rising probability; films of equal probability share one."""
    chance = probability.astype(np.float64)
    edges = np.quantile(chance, np.linspace(0, 1, CALIBRATION_GROUPS + 1)[1:-1])
    group = np.searchsorted(edges, chance, side="right")
    found = []
    for index in np.unique(group):
        own = group == index
        diseased = wilson(int((labels[own] != 0).sum()), int(own.sum()))
        found.append({"n": int(own.sum()), "probability": float(chance[own].mean()), "diseased": asdict(diseased)})
    return found
