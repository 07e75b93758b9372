"""What a parameter of a search was drawn from, as far as the values of its trials tell: for charts and importance."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

CATEGORIES: Final = 6
"""Round numbers of at most so many different values are choices."""
SPREAD: Final = 10
"""A logarithmic scale spans at least this factor."""
WIDE: Final = 50
"""Factor between the ninth and the first tenth of the values, beyond which the scale is logarithmic: drawn evenly from
0 to anything it is 9. A sampler that has learnt where to look does not draw evenly."""


def is_continuous(values: Sequence[Any]) -> bool:
    """Whether these are numbers of a range, and not some choices: many of them, or numbers nobody would choose."""
    different = set(values)
    if len(different) < 2 or not all(type(value) in {int, float} for value in different):
        return False
    return len(different) > CATEGORIES or any(float(f"{value:.3g}") != value for value in different)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers lie more evenly on a logarithmic scale.

    Their tenths are far apart, or their median is nearer the geometric middle of their ends than the arithmetic one.
    """
    low, high = min(values), max(values)
    if low <= 0 or high / low < SPREAD:
        return False
    ordered = sorted(values)
    if ordered[len(values) - 1 - len(values) // 10] / ordered[len(values) // 10] >= WIDE:
        return True
    middle = math.log(median(values))
    return abs(middle - math.log(low * high) / 2) < abs(middle - math.log((low + high) / 2))
