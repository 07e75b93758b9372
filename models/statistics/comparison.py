"""Two models on the same films: is one better, or is it chance?

Their errors on the same films are correlated, so a paired test is more precise than two intervals side by side. Films
of one patient are correlated, too, so the tests count patients.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.statistics.metrics import Interval, Labels, Scores, Z, auc, delong_components

Calls = npt.NDArray[np.bool_]
Patients = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A difference, first minus second, and how often chance alone would give as large a one."""

    difference: Interval
    p_value: float
    """Two-sided."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """McNemar's table: the films that only one of two models decides rightly."""

    only_first: int
    only_second: int
    p_value: float
    """Two-sided, exact."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def delong_test(labels: Labels, first: Scores, second: Scores, patients: Patients | None = None) -> PairedTest:
    """Difference of two AUCs on the same films [N] of `patients` [N] (default: each film its own).

    DeLong, DeLong & Clarke-Pearson 1988, eq. 8, with the films of a patient as one cluster (Obuchowski 1997,
    "Nonparametric analysis of clustered ROC curve data"). Where the two rank all films alike the variance is 0: the
    difference is 0 and p is 1. Raises `InputError` unless both classes are there, with two patients each.
    """
    people = np.arange(len(labels)).astype(str) if patients is None else patients
    sides = [labels != 0, labels == 0]
    counts = [len(np.unique(people[side])) for side in sides]
    if min(counts) < 2:
        raise InputError("comparing two AUCs needs films of at least two patients of each class")
    value = auc(labels, first) - auc(labels, second)
    influence = np.zeros(len(labels))
    pairs = zip(delong_components(labels, first), delong_components(labels, second), strict=True)
    for side, count, (one, other) in zip(sides, counts, pairs, strict=True):
        apart = (one - other) - (one - other).mean()
        influence[side] = apart / len(apart) * math.sqrt(count / (count - 1))
    _, cluster = np.unique(people, return_inverse=True)
    variance = float(np.square(np.bincount(cluster, weights=influence)).sum())
    if variance < 1e-15:
        return PairedTest(difference=Interval(value=value, low=value, high=value), p_value=1.0 if value == 0 else 0.0)
    error = math.sqrt(variance)
    interval = Interval(value=value, low=value - Z * error, high=value + Z * error)
    return PairedTest(difference=interval, p_value=math.erfc(abs(value) / error / math.sqrt(2)))


def mcnemar(labels: Labels, first: Calls, second: Calls, patients: Patients | None = None) -> Discordance:
    """Whether two sets of calls [N] (True: disease) of films of `patients` [N] differ in accuracy (McNemar 1947).

    If neither is better, the films of each patient might as well be for the one as for the other, all together: p is
    how often chance alone gives as large a difference, over all such exchanges. With one film a patient that is the
    exact binomial test.
    """
    disease = labels != 0
    ahead = (first == disease).astype(np.int64) - (second == disease)
    _, cluster = np.unique(np.arange(len(labels)) if patients is None else patients, return_inverse=True)
    of_patient = np.abs(np.bincount(cluster, weights=ahead)).astype(np.int64)
    chance = np.ones(1)  # of each sum of the differences, each of either sign
    for lead in of_patient[of_patient > 0]:
        chance = np.convolve(chance, np.r_[0.5, np.zeros(2 * lead - 1), 0.5])
    sums = np.arange(len(chance)) - len(chance) // 2
    p_value = float(chance[np.abs(sums) >= abs(int(ahead.sum()))].sum())
    return Discordance(only_first=int((ahead > 0).sum()), only_second=int((ahead < 0).sum()), p_value=min(1.0, p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, raised so that chance makes any of them small as seldom as one (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    raised = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        raised[place] = highest
    return raised
