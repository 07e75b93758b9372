"""Films dealt to folds: patients stay together, however they are dealt; blocks follow the archive, sites stay whole."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from random import Random

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from models.errors import InputError
from models.films import Films
from pipelines.ingest.dataset import places
from tuning.recipes.choices import Folds, FoldsBy, parse_folds
from tuning.recipes.crossvalidate import VALIDATION, set_apart
from tuning.recipes.dealing import deal


def some_films(patients: Sequence[str], kinds: Sequence[tuple[int, str]]) -> Films:
    """Films of nothing but what dealing looks at."""
    count = len(patients)
    return Films(
        pixels=np.zeros((count, 1, 1), dtype=np.uint8),
        labels=np.array([label for label, _ in kinds], dtype=np.int64),
        patients=np.array(patients, dtype=str),
        subtypes=np.array([subtype for _, subtype in kinds], dtype=str),
        scan_ids=np.arange(count).astype(str),
    )


KINDS = [(0, ""), (1, "bacteria"), (1, "virus")]
patients = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 6)), min_size=60, max_size=150)


@given(patients, st.integers(2, 6), st.integers(0, 2**31))
def test_folds_are_a_partition_by_patient_with_even_shares(
    some: list[tuple[tuple[int, str], int]], folds: int, seed: int
) -> None:
    some += [(kind, 1) for kind in KINDS for _ in range(4 * folds)]  # so that no fold lacks a class
    names = [f"p{number}" for number, (_, films) in enumerate(some) for _ in range(films)]
    kinds = [kind for kind, films in some for _ in range(films)]
    films = some_films(names, kinds)
    fold_of = deal(films, Folds(count=folds), seed)
    assert set(fold_of) == set(range(1, folds + 1))
    homes = defaultdict(set)
    for name, fold in zip(names, fold_of, strict=True):
        homes[name].add(fold)
    assert all(len(found) == 1 for found in homes.values())
    largest = max(films for _, films in some)
    found = Counter(zip(kinds, fold_of, strict=True))
    for kind in KINDS:
        share = kinds.count(kind) / folds
        assert all(abs(found[kind, fold] - share) <= largest + 1e-9 for fold in range(1, folds + 1))
    np.testing.assert_array_equal(fold_of, deal(films, Folds(count=folds), seed))
    train, val = set_apart(films.take(fold_of != 1), seed)
    assert set(train.patients).isdisjoint(val.patients)
    assert len(train) + len(val) == (fold_of != 1).sum()
    assert abs(len(val) - VALIDATION * (fold_of != 1).sum()) <= len(KINDS) * largest


@given(st.integers(0, 2**31), st.integers(150, 300))
def test_patients_with_films_of_several_kinds_stay_together(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"p{patient}" for patient in rng.integers(0, 41, count)]
    films = some_films(names, [KINDS[kind] for kind in rng.integers(0, 3, count)])
    try:
        fold_of = deal(films, Folds(count=3), seed)
    except InputError:
        reject()  # no fold may lack a class, and then it says so
    homes = {patient: set(fold_of[films.patients == patient]) for patient in films.patients}
    assert all(len(found) == 1 for found in homes.values())


@given(patients, st.integers(2, 6), st.randoms(use_true_random=False))
def test_blocks_are_consecutive_runs_of_even_shares(
    some: list[tuple[tuple[int, str], int]], folds: int, random: Random
) -> None:
    some += [(kind, 1) for kind in KINDS for _ in range(4 * folds)]
    names = [f"p{number}" for number, (_, films) in enumerate(some) for _ in range(films)]
    kinds = [kind for kind, films in some for _ in range(films)]
    order = np.array(places([f"scan-{number}.png" for number in range(len(names))], [None] * len(names)))
    films = replace(some_films(names, kinds), places=order)
    shuffled = np.array(random.sample(range(len(names)), len(names)))
    fold_of = np.empty(len(names), dtype=int)
    fold_of[shuffled] = deal(films.take(shuffled), Folds(by="blocks", count=folds), 0)
    largest = max(count for _, count in some)
    for kind in KINDS:
        own = fold_of[[other == kind for other in kinds]]
        assert (np.diff(own) >= 0).all(), "the order of the archive"
        sizes = np.bincount(own, minlength=folds + 1)[1:]
        assert (np.abs(sizes - len(own) / folds) <= largest).all()
    homes = {name: set(fold_of[films.patients == name]) for name in names}
    assert all(len(found) == 1 for found in homes.values())


def test_a_patient_met_again_later_stays_in_its_first_block() -> None:
    names = [f"p{number}" for number in range(40)]
    names[38] = names[0]
    films = replace(some_films(names, [KINDS[number % 2] for number in range(40)]), places=np.array(sorted(names)))
    films = replace(films, places=np.array([f"{number:03}" for number in range(40)]))
    fold_of = deal(films, Folds(by="blocks", count=2), 0)
    assert fold_of[[0, 38, 1, 39]].tolist() == [1, 1, 1, 2]


def test_sites_stay_whole_and_no_site_is_no_fold() -> None:
    sites = np.repeat(["north", "south", "east"], [30, 20, 10])
    films = some_films([f"p{number}" for number in range(60)], [KINDS[number % 2] for number in range(60)])
    films = replace(films, groups={"site": sites})
    assert deal(films, Folds(by="site"), 0).tolist() == [1] * 30 + [2] * 20 + [3] * 10
    assert deal(films, Folds(by="site", count=2), 0).tolist() == [1] * 30 + [2] * 30
    with pytest.raises(InputError, match="all films are of one site, north; choose --folds blocks"):
        deal(films.take(sites == "north"), Folds(by="site"), 0)
    with pytest.raises(InputError, match="the site of some films is not known"):
        deal(replace(films, groups={"site": np.where(sites == "east", "", sites)}), Folds(by="site"), 0)
    with pytest.raises(InputError, match="fold 3 of 3 would not have films both with and without disease"):
        deal(replace(films, labels=np.where(sites == "east", 1, films.labels)), Folds(by="site"), 0)


def test_numbers_in_names_count_and_dates_come_first() -> None:
    uris = ["s3://a/film-10.png", "s3://a/film-9.png", "s3://a/film-1.png"]
    assert sorted(places(uris, [None] * 3)) == places([uris[2], uris[1], uris[0]], [None] * 3)
    days = [date(2020, 1, 1), date(2021, 1, 1), date(2022, 1, 1)]
    assert sorted(places(uris, days)) == places(uris, days)


@pytest.mark.parametrize("by", ["random", "blocks"])
def test_folds_that_cannot_be_judged_are_refused(by: FoldsBy) -> None:
    films = some_films([f"p{number}" for number in range(40)], [KINDS[number % 2] for number in range(40)])
    films = replace(films, places=films.scan_ids)
    with pytest.raises(InputError, match="choose fewer --folds"):
        deal(films, Folds(by=by, count=40), 0)
    with pytest.raises(InputError, match="the order of these films is not known"):
        deal(replace(films, places=None), Folds(by="blocks"), 0)


def test_how_folds_are_named() -> None:
    assert parse_folds("7") == Folds(count=7, by="random")
    assert parse_folds("blocks") == Folds(count=5, by="blocks")
    assert parse_folds("site:3") == Folds(count=3, by="site")
    for wrong, words in {"1": "choose 2 to 50", "51": "out of range", "blocks:1": "choose 2 to 50"}.items():
        with pytest.raises(InputError, match=words):
            parse_folds(wrong)
    for wrong in ("weeks", "blocks:many", ":3", "blocks 5"):
        with pytest.raises(InputError, match="choose a number, random, blocks, site, or both, as in blocks:4"):
            parse_folds(wrong)
