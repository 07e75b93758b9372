"""Films stay whole, whichever of them are taken and however their splits are put together."""

from dataclasses import replace

import numpy as np
import pytest

from models.films import Films, choose_films, join_films
from tests.models.synthetic import blob_films


def sited(films: Films, site: str) -> Films:
    """Films of one site, and of a view that the other ones do not tell."""
    names = np.full(len(films), site)
    return replace(films, groups={"site": names, f"only-{site}": names})


@pytest.mark.parametrize("chosen", [np.array([5, 0, 2]), np.arange(8) % 2 == 1])
def test_everything_known_of_a_film_stays_with_it(chosen: np.ndarray) -> None:
    films = sited(blob_films(8), "north")
    some = films.take(chosen)
    expected = np.arange(8)[chosen]
    for taken, index in zip(range(len(some)), expected, strict=True):
        assert some.scan_ids[taken] == films.scan_ids[index]
        assert (some.labels[taken], some.subtypes[taken]) == (films.labels[index], films.subtypes[index])
        assert some.patients[taken] == films.patients[index]
        np.testing.assert_array_equal(some.pixels[taken], films.pixels[index])
    assert some.groups["site"].tolist() == ["north"] * len(expected)


def test_joined_films_stand_in_the_order_of_their_scan_ids() -> None:
    north, south = sited(blob_films(6), "north"), sited(blob_films(5, seed=1), "south")
    mixed = north.take(np.array([3, 1, 4, 0, 5, 2]))
    whole = join_films([south, mixed])
    assert whole.scan_ids.tolist() == sorted([*north.scan_ids, *south.scan_ids])
    assert set(whole.groups) == {"site"}, "a group of some films only is none of them all"
    for part, site in ((north, "north"), (south, "south")):
        own = whole.take(whole.groups["site"] == site)
        np.testing.assert_array_equal(own.pixels, part.pixels)
        np.testing.assert_array_equal(own.labels, part.labels)


def test_films_are_chosen_by_class_in_proportion_and_always_the_same() -> None:
    labels = (np.arange(6000) % 100 == 0).astype(np.int64)
    chosen = choose_films(labels, 1000)
    assert abs(len(chosen) - 1000) <= 1
    assert (np.diff(chosen) > 0).all()
    assert labels[chosen].sum() == 10
    assert (chosen == choose_films(labels, 1000)).all()
    assert len(choose_films(labels[:900], 1000)) == 900
    rare = np.zeros(5000, dtype=np.int64)
    rare[17] = 1
    assert 17 in choose_films(rare, 1000)
