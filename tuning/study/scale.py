"""The scale of a searched parameter, inferred from the values of its trials: for charts and importance."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

CATEGORIES: Final = 6
"""At most so many different values are choices, if they are round numbers."""
SPREAD: Final = 10
"""Least factor that a logarithmic scale spans."""
WIDE: Final = 50
"""Ratio of the 90th to the 10th percentile beyond which the scale is logarithmic: of uniform values from 0 it is 9.
A sampler that has learned where to look does not draw uniformly."""


def is_continuous(values: Sequence[Any]) -> bool:
    """Whether these are numbers of a range, and not choices: many of them, or numbers that are not round."""
    different = set(values)
    if len(different) < 2 or not all(type(value) in {int, float} for value in different):
        return False
    return len(different) > CATEGORIES or any(float(f"{value:.3g}") != value for value in different)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers are spread more evenly on a logarithmic scale.

    Their 10th and 90th percentiles are far apart, or their median is nearer to the geometric than to the arithmetic
    mean of their ends.
    """
    low, high = min(values), max(values)
    if low <= 0 or high / low < SPREAD:
        return False
    ordered = sorted(values)
    if ordered[len(values) - 1 - len(values) // 10] / ordered[len(values) // 10] >= WIDE:
        return True
    middle = math.log(median(values))
    return abs(middle - math.log(low * high) / 2) < abs(middle - math.log((low + high) / 2))
