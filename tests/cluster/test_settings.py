"""Durations and job files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import seconds, size
from pipelines.errors import InputError


@given(d=st.integers(0, 999), h=st.integers(0, 99), m=st.integers(0, 59), s=st.integers(0, 59))
def test_durations_add_up(d: int, h: int, m: int, s: int) -> None:
    assert seconds(f"{d}d{h}h{m}m{s}s") == 86_400 * d + 3600 * h + 60 * m + s


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90), ("30m", 1800), ("1h", 3600), (" 2M ", 120), ("1h30", 3630), ("90d", 7_776_000)]
)
def test_parts_may_be_left_out(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "m", "1w", "1h1d", "9" * 400, "-5m", "1m1h", "1.5h"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 << 30), ("512 MiB", 512 << 20), ("1.5GB", 1_500_000_000), ("2g", 2_000_000_000), ("4096", 4096)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-2GiB", "2 gigs", "2GiBs"])
def test_other_sizes_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=f"^'{text}' is not a size; write 2GiB or 512MiB$"):
        size(text)
