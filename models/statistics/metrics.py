"""How good a model is, each figure with its 95 % interval.

The intervals say what other films of the same archive might have given. They say nothing about another hospital.
Labels are class indices [N], 0 for no disease, others for kinds of it; scores and probabilities are of disease [N].
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InputError

Z: Final = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
ECE_BINS: Final = 15

Labels = npt.NDArray[np.integer[Any]]
Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model did on `n` films, called positive when the probability is at least `threshold`."""

    n: int
    positives: int
    auc: Interval
    accuracy: Interval
    sensitivity: Interval
    specificity: Interval
    tp: int
    fp: int
    tn: int
    fn: int
    brier: float
    ece: float
    threshold: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def evaluate(labels: Labels, probability: Scores, threshold: float) -> Evaluation:
    """Every figure at one threshold. Raises `InputError` unless both classes are there."""
    tp, fp, tn, fn = confusion(labels, probability, threshold)
    return Evaluation(
        n=len(labels),
        positives=tp + fn,
        auc=auc_interval(labels, probability),
        accuracy=wilson(tp + tn, len(labels)),
        sensitivity=wilson(tp, tp + fn),
        specificity=wilson(tn, tn + fp),
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        brier=brier(labels, probability),
        ece=ece(labels, probability),
        threshold=threshold,
    )


def confusion(labels: Labels, probability: Scores, threshold: float) -> tuple[int, int, int, int]:
    """True positives, false positives, true negatives, false negatives."""
    disease, called = labels != 0, probability >= threshold
    return (
        int((disease & called).sum()),
        int((~disease & called).sum()),
        int((~disease & ~called).sum()),
        int((disease & ~called).sum()),
    )


def auc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve: how often a diseased film scores above a healthy one, ties counting half."""
    positive, negative = _sides(labels, scores)
    ranks = _midranks(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    return float((ranks[:m].sum() / m - (m + 1) / 2) / n)


def auc_interval(labels: Labels, scores: Scores) -> Interval:
    """AUC with DeLong's interval on the logit scale, in O(N log N).

    Variance: Sun & Xu 2014, "Fast Implementation of DeLong's Algorithm", algorithm 2. Where it is zero (perfect
    separation, or all scores equal) it says nothing, and the bound AUC (1 - AUC) / min(m, n) of the Mann-Whitney
    variance (Birnbaum & Klose 1957) takes its place: that is Wilson's interval on the rarer class.
    """
    positive, negative = _sides(labels, scores)
    m, n = len(positive), len(negative)
    value = auc(labels, scores)
    variance = 0.0
    if min(m, n) > 1:
        of_positive, of_negative = delong_components(labels, scores)
        variance = float(of_positive.var(ddof=1) / m + of_negative.var(ddof=1) / n)
    if variance < 1e-15 or value in {0.0, 1.0}:
        return wilson(value * min(m, n), min(m, n))
    logit = math.log(value / (1 - value))
    reach = Z * math.sqrt(variance) / (value * (1 - value))
    return Interval(value=value, low=_expit(logit - reach), high=_expit(logit + reach))


def delong_components(labels: Labels, scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each diseased film the share of healthy ones it scores above, and the reverse of each healthy one."""
    positive, negative = _sides(labels, scores)
    m, n = len(positive), len(negative)
    ranks = _midranks(np.concatenate([positive, negative]))
    return (ranks[:m] - _midranks(positive)) / n, 1 - (ranks[m:] - _midranks(negative)) / m


def wilson(k: float, n: int) -> Interval:
    """Wilson's score interval of a share of k in n (Wilson 1927; Brown, Cai & DasGupta 2001, sec. 3.1.1)."""
    if n < 1:
        raise InputError("a share needs at least one film to count")
    share = k / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low = 0.0 if k == 0 else max(0.0, centre - reach)
    high = 1.0 if k == n else min(1.0, centre + reach)
    return Interval(value=share, low=low, high=high)


def brier(labels: Labels, probability: Scores) -> float:
    """Mean squared difference of probability and outcome (Brier 1950, for two classes: half of his sum)."""
    return float(np.square(probability.astype(np.float64) - (labels != 0)).mean())


def ece(labels: Labels, probability: Scores) -> float:
    """Expected calibration error of the probability of disease, in 15 bins of equally many films.

    Films of equal probability share a bin, so the order of the films does not matter.
    """
    probability = probability.astype(np.float64)
    edges = np.quantile(probability, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, probability, side="right")
    gap = np.bincount(bins, weights=probability - (labels != 0))
    return float(np.abs(gap).sum() / len(labels))


def sensitivity_by_group(
    labels: Labels, probability: Scores, groups: npt.NDArray[np.str_], threshold: float
) -> dict[str, tuple[int, Interval]]:
    """For each named group of diseased films (bacteria, virus): how many there are, and the sensitivity."""
    named = [str(group) for group in np.unique(groups[labels != 0]) if group]
    found = {}
    for group in named:
        called = probability[(labels != 0) & (groups == group)] >= threshold
        found[group] = (len(called), wilson(int(called.sum()), len(called)))
    return found


def _sides(labels: Labels, scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores of the diseased and of the healthy films."""
    if labels.shape != scores.shape or not np.isfinite(scores).all():
        raise InputError(f"AUC needs one finite score for each of {len(labels)} films")
    positive = scores[labels != 0].astype(np.float64)
    negative = scores[labels == 0].astype(np.float64)
    if not len(positive) or not len(negative):
        raise InputError(
            f"AUC needs films of both classes; there are {len(positive)} with disease and {len(negative)} without"
        )
    return positive, negative


def _midranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
