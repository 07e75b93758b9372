"""No patient on two sides, shares as asked, the same for the same seed."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts import EXCLUDED
from pipelines.ingest.split import assign_splits, split_patients
from pipelines.splits import SPLITS

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
PatientAndStratum = tuple[str, str]

films = st.lists(st.tuples(st.integers(0, 60).map(str), st.sampled_from(["normal", "bacteria", "virus"])), max_size=300)
kept = st.lists(st.sampled_from([None, None, None, *SPLITS]), min_size=300, max_size=300)


def split(some: list[PatientAndStratum], seed: int = 0) -> list[str]:
    return split_patients([p for p, _ in some], [s for _, s in some], fractions=FRACTIONS, seed=seed)


@given(films, st.integers())
def test_a_patient_stands_on_one_side(some: list[PatientAndStratum], seed: int) -> None:
    sides = defaultdict(set)
    for (patient, _), side in zip(some, split(some, seed), strict=True):
        sides[patient].add(side)
    assert all(len(found) == 1 for found in sides.values())


@given(films, st.integers(), st.randoms())
def test_the_order_of_the_listing_does_not_matter(some: list[PatientAndStratum], seed: int, shuffler) -> None:  # type: ignore[no-untyped-def]
    places = dict(zip((patient for patient, _ in some), split(some, seed), strict=True))
    shuffled = list(some)
    shuffler.shuffle(shuffled)
    assert dict(zip((patient for patient, _ in shuffled), split(shuffled, seed), strict=True)) == places


@given(films, kept, st.integers(), st.randoms())
def test_permuted_films_get_permuted_splits(
    some: list[PatientAndStratum], given_all: list[str | None], seed: int, shuffler
) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(some)))
    shuffler.shuffle(order)

    def assign(places: list[int]) -> list[str]:
        return assign_splits(
            patients=[some[i][0] for i in places],
            strata=[some[i][1] for i in places],
            kept=[given_all[i] for i in places],
            fractions=FRACTIONS,
            seed=seed,
        )

    straight = assign(list(range(len(some))))
    assert assign(order) == [straight[i] for i in order]


@given(films, st.integers())
def test_shares_are_off_by_one_patient_at_most(some: list[PatientAndStratum], seed: int) -> None:
    one_stratum = [(patient, "all") for patient, _ in some]
    largest = max(Counter(patient for patient, _ in some).values(), default=0)
    found = Counter(split(one_stratum, seed))
    assert all(abs(found[name] - share * len(some)) <= largest + 1e-9 for name, share in FRACTIONS.items())


def test_each_stratum_keeps_its_shares() -> None:
    some = [(f"{stratum}{i}", stratum) for stratum, n in (("a", 1000), ("b", 100)) for i in range(n)]
    found = Counter(zip((stratum for _, stratum in some), split(some), strict=True))
    assert found["a", "train"] == 700
    assert found["b", "train"] == 70
    assert found["b", "val"] == found["b", "test"] == 15


def test_the_seed_moves_patients() -> None:
    some = [(str(i), "all") for i in range(100)]
    assert split(some, 0) == split(some, 0) != split(some, 1)


def test_no_share_no_films() -> None:
    patients = [str(i) for i in range(50)]
    found = split_patients(patients, ["all"] * 50, fractions={"train": 0.85, "val": 0.15, "test": 0.0}, seed=3)
    assert set(found) == {"train", "val"}


@given(films, kept, st.integers())
def test_given_splits_are_kept_and_nothing_leaks(
    some: list[PatientAndStratum], given_all: list[str | None], seed: int
) -> None:
    given_splits = given_all[: len(some)]
    patients, strata = [p for p, _ in some], [s for _, s in some]
    found = assign_splits(patients=patients, strata=strata, kept=given_splits, fractions=FRACTIONS, seed=seed)
    sides = defaultdict(set)
    for patient, side in zip(patients, found, strict=True):
        sides[patient].add(side)
    assert all(len(side - {EXCLUDED}) == 1 for side in sides.values())
    for was, now in zip(given_splits, found, strict=True):
        assert now in {was, EXCLUDED} if was else now in {*SPLITS, EXCLUDED}
        assert now == "test" or was != "test"


@pytest.mark.parametrize(
    ("given_splits", "wanted"),
    [
        (["test", None], ["test", EXCLUDED]),
        (["test", "train"], ["test", EXCLUDED]),
        (["val", "train"], ["val", EXCLUDED]),
        (["train", None], ["train", "train"]),
    ],
)
def test_a_patient_of_test_serves_no_other_side(given_splits: list[str | None], wanted: list[str]) -> None:
    found = assign_splits(patients=["p", "p"], strata=["a", "a"], kept=given_splits, fractions=FRACTIONS, seed=0)
    assert found == wanted
