"""A fingerprint says how films are spread, in numbers that survive JSON."""

import itertools
import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.statistics.fingerprint import BINS, QUANTITIES, fingerprint, grey_statistics, reference


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_grey_statistics_are_those_of_the_pixels(film: npt.NDArray[np.uint8]) -> None:
    mean, spread = grey_statistics(film)
    assert mean == pytest.approx(film.mean(), abs=1e-9)
    assert spread == pytest.approx(film.std(), abs=1e-5)


class TestReference:
    def test_deciles_and_percentiles_of_many_values(self) -> None:
        values = np.random.default_rng(1).permutation(np.arange(1001.0))
        known = reference(values)
        assert known is not None
        assert known["edges"] == pytest.approx(np.arange(100, 1000, 100))
        assert known["shares"] == pytest.approx([0.1] * BINS, abs=0.001)
        assert known["percentiles"] == pytest.approx(np.arange(0, 1001, 10))

    @given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.99, 1.0]), min_size=1, max_size=60))
    def test_shares_count_every_value_once_however_many_are_equal(self, values: list[float]) -> None:
        known = reference(np.array(values))
        assert known is not None
        assert all(low < high for low, high in zip(known["edges"], known["edges"][1:], strict=False))
        bounds = [-np.inf, *known["edges"], np.inf]
        counted = [sum(low <= value < high for value in values) for low, high in itertools.pairwise(bounds)]
        assert known["shares"] == pytest.approx([count / len(values) for count in counted])

    def test_values_that_are_no_numbers_are_left_out(self) -> None:
        assert reference(np.array([np.nan, 1.0, np.inf, 2.0, 3.0])) == reference(np.array([1.0, 2.0, 3.0]))

    def test_nothing_known_is_none(self) -> None:
        assert reference(np.array([np.nan])) is None
        assert reference(np.array([])) is None


def test_a_fingerprint_holds_every_quantity_and_survives_json() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    probability = rng.random(50).astype(np.float32)
    made = fingerprint(pixels, probability, np.full(50, np.nan, np.float32))
    assert made["films"] == 50
    assert set(made) == {"films", *QUANTITIES}
    assert made["grey_mean"] == reference(pixels.reshape(50, -1).mean(axis=1))
    assert made["ood_score"] is None  # of a model without a feature space
    assert json.loads(json.dumps(made)) == made


def test_no_films_have_an_empty_fingerprint() -> None:
    nothing = np.array([], dtype=np.float32)
    made = fingerprint(np.empty((0, 8, 8), np.uint8), nothing, nothing)
    assert made == {"films": 0, **dict.fromkeys(QUANTITIES)}
