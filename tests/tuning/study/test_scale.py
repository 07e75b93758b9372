"""Choices, ranges and logarithmic ranges are told apart by the values drawn from them."""

import numpy as np
import pytest

from tuning.study.scale import is_continuous, is_logarithmic

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "continuous"),
    [
        ([16, 32, 64, 32], False),
        ([1e-3, 3e-3], False),
        (["avg", "max"], False),
        ([True, False], False),
        ([16, "max"], False),
        ([0.5], False),
        ([0.00271828, 0.1], True),
        (list(range(10)), True),
    ],
)
def test_ranges_and_choices(values: list[object], continuous: bool) -> None:
    assert is_continuous(values) == continuous


def test_logarithmic_ranges() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert is_logarithmic((10 ** rng.uniform(-5, -1, 30)).tolist())
        assert not is_logarithmic(rng.uniform(0.1, 0.9, 30).tolist())
        assert not is_logarithmic(rng.uniform(0.0, 1.5, 30).tolist())
        assert not is_logarithmic((-rng.uniform(0.0, 1.5, 30)).tolist())
