"""The table of drift: a row a site, the worst first, and the reason where drift was not judged."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Store
from tests.pipelines.pages.night.runs import NIGHT, finding
from tests.pipelines.pages.samples import write_run, written_report


class TestDrift:
    def test_a_row_a_site_and_the_level_in_words(self, store: Store, tmp_path: Path) -> None:
        drift = [
            finding("ok", psi=0.021, ks=0.03),
            finding("warn", quantity="reject_share"),
            finding("ok", "calm"),
            finding("alarm", "loud"),
            finding("too_few", "small", n=3, psi=None, ks=None),
        ]
        write_run(store, 0, NIGHT, drift=drift, drift_level="alarm")
        page = written_report(store, tmp_path / "night.html")
        assert "Drift ALARM worst of all sites" in page.text
        assert "All sites 500 ok PSI 0.02 · KS 0.03 warning 9.0 %" in page.text
        assert "loud 500 ALARM PSI 0.61 · KS 0.40 calm 500 ok PSI 0.61 · KS 0.40 small 3 too few" in page.text
        assert "more or fewer patients have pneumonia" in page.text
        assert page.marked("alarm") == 1 + 2  # in the table; in the task, with its border

    def test_only_the_worst_sites_are_shown(self, store: Store, tmp_path: Path) -> None:
        drift = [finding("ok" if n < 29 else "alarm", f"site-{n}") for n in range(30)]
        write_run(store, 0, NIGHT, drift=drift)
        page = written_report(store, tmp_path / "night.html")
        assert "site-29 500 ALARM" in page.text
        assert "The 20 sites with the worst drift; 10 more are not shown." in page.text

    @pytest.mark.parametrize(
        ("record", "says"),
        [
            ({}, "recorded no drift: it was made by an earlier version"),
            ({"state": "unfinished"}, "Drift is judged when the run is finished."),
            ({"drift": [finding("too_few", note="the bundle has no fingerprint")]}, "the bundle has no fingerprint."),
        ],
    )
    def test_no_drift_says_why(self, store: Store, tmp_path: Path, record: dict[str, Any], says: str) -> None:
        write_run(store, 0, NIGHT, **record)
        page = written_report(store, tmp_path / "night.html")
        assert says in page.text
        assert "ALARM" not in page.text

    def test_nothing_new_has_no_films_to_judge(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        write_run(store, 1, [], drift=[])
        assert "There was no film to judge." in written_report(store, tmp_path / "night.html").text
