"""Two models on the same films: is one better, or is it chance?

Their errors on the same films are correlated, so a paired test is more precise than two intervals side by side.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.statistics.metrics import Interval, Labels, Scores, Z, auc, delong_components


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


def delong_test(labels: Labels, first: Scores, second: Scores) -> PairedTest:
    """Difference of two AUCs on the same films (DeLong, DeLong & Clarke-Pearson 1988, eq. 8).

    Where the two rank all films alike its variance is 0: the difference is 0 and p is 1.
    Raises `InputError` unless both classes are there, with two films each.
    """
    if min(int((labels != 0).sum()), int((labels == 0).sum())) < 2:
        raise InputError("comparing two AUCs needs at least two films of each class")
    value = auc(labels, first) - auc(labels, second)
    variance = 0.0
    for one, other in zip(delong_components(labels, first), delong_components(labels, second), strict=True):
        variance += float((one - other).var(ddof=1)) / len(one)
    if variance < 1e-15:
        return PairedTest(difference=Interval(value=value, low=value, high=value), p_value=1.0 if value == 0 else 0.0)
    error = math.sqrt(variance)
    interval = Interval(value=value, low=value - Z * error, high=value + Z * error)
    return PairedTest(difference=interval, p_value=math.erfc(abs(value) / error / math.sqrt(2)))


def mcnemar(labels: Labels, first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Discordance:
    """Whether two sets of calls [N] (True: disease) differ in accuracy (McNemar 1947), by the exact binomial test."""
    disease = labels != 0
    only_first = int(((first == disease) & (second != disease)).sum())
    only_second = int(((first != disease) & (second == disease)).sum())
    films = only_first + only_second
    tail = sum(math.comb(films, k) for k in range(min(only_first, only_second) + 1))
    # in whole numbers until the end: 2 ** 1100 is no float
    p_value = 1.0 if only_first == only_second else min(1.0, float(2 * tail / 2**films))
    return Discordance(only_first=only_first, only_second=only_second, p_value=p_value)
