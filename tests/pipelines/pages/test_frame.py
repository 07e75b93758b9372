"""Numbers on pages read as people write them."""

from pipelines.pages.frame import duration, interval, share, time


def test_numbers_read_as_people_write_them() -> None:
    assert share(3, 4) == "75.0 %"
    assert (share(1, 100_000), share(99_999, 100_000), share(0, 5), share(5, 5)) == (
        "<0.1 %",
        ">99.9 %",
        "0.0 %",
        "100.0 %",
    )
    assert share(0, 0) == "\N{EN DASH}"
    assert [duration(s) for s in (0.5, 59.7, 200, 3900)] == ["0.5 s", "1 min 00 s", "3 min 20 s", "1 h 05 min"]
    assert interval({"value": 0.98712, "low": 0.981, "high": 0.9919}) == "0.987 (0.981\N{EN DASH}0.992)"
    assert time("2026-11-20T03:12:44+00:00") == "2026-11-20 03:12 UTC"
    assert time("yesterday") == "yesterday"
