"""Globs and dates that choose from an archive."""

import fnmatch
import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.ingest.filters import Filters, glob_pattern, parse_filters


@pytest.mark.parametrize(
    ("glob", "matched", "others"),
    [
        ("*.dcm", ["a.dcm", "x/y/a.dcm"], ["a.dcm.gz", "adcm"]),
        ("ct/*.dcm", ["ct/a.dcm"], ["a.dcm", "x/ct/a.dcm", "ct/x/a.dcm"]),
        ("ct/**", ["ct/a", "ct/x/a.dcm"], ["act/a"]),
        ("**/ct/**", ["ct/a", "x/ct/a", "x/y/ct/z/a"], ["xct/a"]),
        ("/top.*", ["top.png"], ["x/top.png"]),
        ("IM?.[dj]*", ["IM1.dcm", "a/IM2.jpg"], ["IM12.dcm", "IM1.png"]),
        ("[!a]b", ["cb"], ["ab"]),
        ("a+b(1).png", ["a+b(1).png"], ["aab1.png"]),
        ("batch.zip!/*", ["batch.zip!/p1.dcm"], ["batch.zip"]),
    ],
)
def test_globs(glob: str, matched: list[str], others: list[str]) -> None:
    pattern = glob_pattern(glob)
    names = pa.array([*matched, *others])
    expected = [True] * len(matched) + [False] * len(others)
    assert pc.match_substring_regex(names, pattern).to_pylist() == expected
    assert [bool(re.search(pattern, name)) for name in names.to_pylist()] == expected


@given(st.text(st.sampled_from("ab*?.+( é-"), max_size=8), st.text(st.sampled_from("ab.+( é-"), max_size=8))
def test_a_glob_without_folders_is_that_of_a_shell(glob: str, name: str) -> None:
    pattern = glob_pattern(glob.replace("**", "*"))
    expected = fnmatch.fnmatchcase(name, glob)
    assert pc.match_substring_regex(pa.array([name]), pattern)[0].as_py() == expected


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"since": "7"}, {"include": "[ab"}, {"exclude": "[z-a]"}])
def test_wrong_ones_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"since|glob") as caught:
        parse_filters(**{"include": None, "exclude": None, "since": None, **wrong})
    assert "\n" not in str(caught.value)


def test_none_are_false_and_lists_are_cut_at_commas() -> None:
    assert not Filters()
    assert parse_filters("*.dcm, *.png,", None, None) == Filters(include=("*.dcm", "*.png"))
