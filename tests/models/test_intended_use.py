"""Whose films a model is for: what a header must say to be refused, and that silence never is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from models.intended_use import ANY, OLDEST, IntendedUse, ScanFacts, combined, state

CHILDREN = IntendedUse(age_years=(1, 5), views=("AP",), modalities=("CR", "DX"), manufacturers=("Siemens",))


@pytest.mark.parametrize(
    ("scan", "limit"),
    [
        (ScanFacts(), None),
        (ScanFacts(age_years=1, view="AP SUPINE", modality="DX", manufacturer="Philips", site="north"), None),
        (ScanFacts(age_years=0), "age_years"),
        (ScanFacts(age_years=6), "age_years"),
        (ScanFacts(view="PA ERECT"), "views"),
        (ScanFacts(view="ERECT"), None),
        (ScanFacts(view="ap"), None),
        (ScanFacts(modality="RG"), "modalities"),
        (ScanFacts(age_years=40, modality="RG"), "age_years"),
    ],
)
def test_a_header_that_says_something_else_is_believed(scan: ScanFacts, limit: str | None) -> None:
    assert CHILDREN.excludes(scan) == limit


def test_makers_and_sites_exclude_only_where_a_person_stated_them() -> None:
    other = ScanFacts(manufacturer="Philips", site="south")
    assert CHILDREN.excludes(other) is None
    assert combined(state({"manufacturers": ["Siemens"]}), CHILDREN).excludes(other) == "manufacturers"
    assert state({"sites": ["North"]}).excludes(other) == "sites"
    assert state({"sites": ["SOUTH"]}).excludes(other) is None


def test_what_is_stated_goes_before_what_the_films_show() -> None:
    use = combined(state({"age_years": [0, 17], "countries": ["CN"]}), CHILDREN)
    assert (use.age_years, use.views, use.countries, use.stated) == (
        (0, 17),
        ("AP",),
        ("CN",),
        ("age_years", "countries"),
    )
    assert use.in_words()["age"] == "0 to 17 years (stated)"
    assert use.in_words()["views"] == "AP (seen in the training films)"
    assert combined(ANY, CHILDREN) == CHILDREN
    assert combined(ANY, ANY).to_json() == {}


@given(low=st.integers(0, OLDEST), width=st.integers(0, OLDEST), age=st.integers(0, 120))
def test_ages_within_are_whole_years_and_the_oldest_stand_for_all_above(low: int, width: int, age: int) -> None:
    high = min(OLDEST, low + width)
    excluded = IntendedUse(age_years=(low, high)).excludes(ScanFacts(age_years=age))
    assert (excluded is None) == (low <= age <= high or (high == OLDEST and age > OLDEST))


def test_it_survives_json() -> None:
    use = combined(state({"age_years": [1, 5]}), CHILDREN)
    assert IntendedUse.from_json(json.loads(json.dumps(use.to_json()))) == use


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"ages": [1, 5]}, "has no 'ages'; did you mean 'age_years'"),
        ({"age_years": 5}, "not a list"),
        ({"age_years": [5, 1]}, "youngest and oldest"),
        ({"age_years": [1.0, 5.0]}, "youngest and oldest"),
        ({"views": ["LL"]}, "LL is no projection"),
        ({"sites": [3]}, "list of names"),
        ({"sites": []}, "not a list"),
        ({"stated": ["sites"]}, "name the limits themselves"),
        ("adults", "is a table such as"),
    ],
)
def test_what_is_no_intended_use_is_refused_in_one_line(limits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        state(limits)
    assert "\n" not in str(refused.value)
