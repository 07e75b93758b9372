"""The charts of the nights before."""

from pathlib import Path

from pipelines.pages.night.history import Night, courses
from pipelines.storage import Store
from tests.pipelines.pages.night.runs import NIGHT
from tests.pipelines.pages.samples import Outcome, write_run, written_report


class TestNightsBefore:
    def test_figures_of_tonight_and_before(self, store: Store, tmp_path: Path) -> None:
        for number, positives in enumerate((10, 20, 30)):
            outcomes = [Outcome(100 - positives, probability=0.1), Outcome(positives, probability=0.9)]
            write_run(store, number, [*outcomes, Outcome(25, reason="blank", status="rejected")])
        write_run(store, 3, [Outcome(60, probability=0.1), Outcome(40, probability=0.9)])
        page = written_report(store, tmp_path / "night.html")
        assert page.charts[1:] == [
            "Scans: 100 tonight, 125 in the 3 nights before (median, dashed)",
            "Called positive, % of scored: 40 tonight, 20 in the 3 nights before (median, dashed)",
            "Rejected or unreadable, %: 0 tonight, 20 in the 3 nights before (median, dashed)",
            "Scans per second: 140 tonight, 140 in the 3 nights before (median, dashed)",
        ]

    def test_a_first_night(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        page = written_report(store, tmp_path / "night.html")
        assert "This is the first run of this model." in page.text
        assert len(page.charts) == 1

    def test_only_thirty_nights_count(self, store: Store, tmp_path: Path) -> None:
        for number in range(33):
            write_run(store, number, [Outcome(1000 if number < 3 else 5, probability=0.1)])
        page = written_report(store, tmp_path / "night.html")
        assert "Scans: 5 tonight, 5 in the 29 nights before" in page.text
        assert "The newest 30 runs; 3 older ones are not shown." in page.text

    def test_nights_without_anything_new_have_no_shares(self) -> None:
        empty = Night(date="2026-11-01", scans=0, scored=0, positives=0, left_out=0, rate=None)
        assert [course.caption for course in courses([empty, empty])] == [
            "Scans: 0 tonight, 0 in the night before (median, dashed)"
        ]
