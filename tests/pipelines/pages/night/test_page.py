"""The page of the newest run: its counts are the table's, and it is about the model of that run."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.report import write_report
from pipelines.contracts import Reason
from pipelines.pages.night import figures, todo
from pipelines.storage import Store, open_store
from pipelines.table.query import open_scores
from tests.pipelines.pages.night.runs import NIGHT
from tests.pipelines.pages.samples import HOSTILE, MODEL_ID, Outcome, read_page, write_run, written_report
from tests.servers import S3Server

OTHER_MODEL = "ffeeddccbbaa9988"


class TestRun:
    def test_counts_shares_and_advice(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT[:2])
        newest = write_run(store, 1, NIGHT, resumed_shards=3)
        page = written_report(store, tmp_path / "night.html")
        assert "Night report: 2026-11-20" in page.text
        assert "Planned 1,813 of 90,000 listed" in page.text
        assert "Scored 1,801 99.3 %" in page.text
        assert "Called positive 301 16.7 % of those scored" in page.text
        assert "Not scored 12 0.7 %" in page.text
        assert "Rate 140.3 scans a second; 3 shards were scored by an earlier attempt" in page.text
        assert "every scan is accounted for" in page.text
        # the archive holds both nights
        assert "3,613 scans are in the table" in page.text
        assert f"truncated {todo.ADVICE[Reason.TRUNCATED]} 8 8 unreadable" in page.text
        assert f"not_frontal {todo.ADVICE[Reason.NOT_FRONTAL]} 4 4 rejected" in page.text
        assert f"{newest} {MODEL_ID} 1,813 1,801 4 8 0 16.7 % 3 min 20 s" in page.text
        assert "highest probability called negative is 0.03, the lowest called positive 0.97" in page.text
        assert page.charts[0] == "Histogram of the probabilities of this run, by call"

    def test_where_all_of_the_listing_was_new_no_rest_is_spoken_of(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, listed=1_813)
        assert "Planned 1,813 all that were listed" in written_report(store, tmp_path / "night.html").text

    def test_the_role_of_the_model_is_said_if_it_has_one(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        assert "Role of the model" not in written_report(store, tmp_path / "night.html").text
        entry = {"number": 1, "action": "promote", "role": "shadow", "model_id": MODEL_ID, "bundle": "s3://m/best"}
        entry |= {"name": "mobilenet", "who": "anna", "why": "", "at": "2026-03-01T00:00:00+00:00"}
        store.put("models/00000001.json", json.dumps(entry).encode())
        page = written_report(store, tmp_path / "night.html")
        assert "Role of the model shadow: mobilenet, since 2026-03-01" in page.text

    def test_sites(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        page = written_report(store, tmp_path / "night.html")
        assert "north 1,509 1,501 8 1 0.1 %" in page.text
        assert "south 300 300 0 300 100.0 %" in page.text
        assert "not recorded 4 0 4 0" in page.text

    def test_only_the_busiest_sites_are_shown(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(30 - n, probability=0.2, site=f"site-{n}") for n in range(25)])
        page = written_report(store, tmp_path / "night.html")
        assert "site-0 30" in page.text
        assert "site-20 10" not in page.text
        assert "The 20 sites with most scans; 5 more are not shown." in page.text

    def test_an_unfinished_run_says_how_to_go_on(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, state="unfinished", planned=5000)
        page = written_report(store, tmp_path / "night.html")
        assert "This run is not finished: 3,187 of 5,000 scans are not written yet" in page.text
        assert "run the same command again" in page.text

    def test_a_night_without_anything_new(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        write_run(store, 1, [])
        page = written_report(store, tmp_path / "night.html")
        assert "Nothing was new" in page.text
        assert "1,813 scans are in the table" in page.text
        assert "No film of this run has a probability." in page.text
        assert "Histogram" not in " ".join(page.charts)

    def test_everything_called_alike(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(5, probability=0.9)])
        assert "all scans were called the same" in written_report(store, tmp_path / "night.html").text

    def test_hostile_text_is_text(self, store: Store, tmp_path: Path) -> None:
        rows = [Outcome(3, reason=HOSTILE, status="failed", site=HOSTILE), Outcome(2, probability=0.4, site=HOSTILE)]
        write_run(store, 0, rows, source=HOSTILE, operating_point=HOSTILE)
        page = written_report(store, tmp_path / "night.html")
        assert page.text.count(HOSTILE) >= 4
        assert "does not know this reason" in page.text

    def test_histogram_counts_every_probability_once(self, store: Store) -> None:
        edges = [Outcome(1, probability=p) for p in (0.0, 0.025, 0.5, 0.9999, 1.0)]
        run_id = write_run(store, 0, edges)
        with open_scores(store.root) as connection:
            bins = figures._histogram(connection, run_id)
        assert sorted((row["bin"], row["positive"], row["scans"]) for row in bins) == [
            (0, False, 1),
            (1, False, 1),
            (20, True, 1),
            (39, True, 2),
        ]

    def test_on_s3(self, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
        store = open_store(f"{s3.bucket()}/night scores")
        write_run(store, 0, NIGHT)
        uri = write_report(store.root, store.uri("runs/report.html"))
        assert uri == store.uri("runs/report.html")
        assert "Planned 1,813" in read_page(store.get("runs/report.html").decode()).text


class TestModels:
    def test_the_page_is_about_the_newest_runs_model_only(self, store: Store, tmp_path: Path) -> None:
        rows = [Outcome(50, probability=0.9), Outcome(10, probability=0.1)]
        write_run(store, 0, rows, model_id=OTHER_MODEL)
        write_run(store, 1, [Outcome(30, probability=0.1)])
        write_run(store, 1, [Outcome(30, probability=0.9)], model_id=OTHER_MODEL)
        write_run(store, 2, [Outcome(5, probability=0.1), Outcome(1, reason="vanished", status="failed")])
        page = written_report(store, tmp_path / "night.html")
        assert "36 scans are in the table, from this run or an earlier one of this model: 35 scored" in page.text
        assert "0 called positive" in page.text
        assert "Scans: 6 tonight, 30 in the night before" in page.text
        assert f"Other models Model Runs Newest {OTHER_MODEL} 2 2026-11-20" in page.text
        assert f"--compare {MODEL_ID},{OTHER_MODEL} --out R.html" in page.text

    @pytest.mark.parametrize("failed_later", [True, False])
    def test_a_scan_scored_once_stays_scored(self, store: Store, tmp_path: Path, failed_later: bool) -> None:
        same = {"uri": "s3://hospital/scans/same.dcm"}
        outcomes = [
            Outcome(1, probability=0.9, columns=same),
            Outcome(1, reason="vanished", status="failed", columns=same),
        ]
        for number, outcome in enumerate(outcomes if failed_later else outcomes[::-1]):
            write_run(store, number, [outcome])
            write_run(store, number, [outcome], model_id=OTHER_MODEL)
        assert "1 scans are in the table" in (text := written_report(store, tmp_path / "night.html").text)
        assert "1 scored (100.0 %)" in text


class TestRecords:
    @pytest.mark.parametrize(
        ("engine", "says"),
        [
            (
                {"name": "openvino", "precision": "bf16", "films_per_second": 412.04},
                "Engine name openvino · precision bf16",
            ),
            ("torch", "Engine torch"),
            (None, "Layout"),
        ],
    )
    def test_engines_of_every_version(self, store: Store, tmp_path: Path, engine: Any, says: str) -> None:
        write_run(store, 0, NIGHT, layout="8 actors")
        record = f"runs/{write_run(store, 1, NIGHT, layout='8 actors')}/run.json"
        store.put(record, json.dumps(json.loads(store.get(record)) | {"engine": engine}).encode())
        assert says in written_report(store, tmp_path / "night.html").text

    @pytest.mark.parametrize("recorded", [True, False])
    def test_a_recorded_threshold_is_drawn_where_the_calls_do_not_tell_it(
        self, store: Store, tmp_path: Path, recorded: bool
    ) -> None:
        key = f"runs/{write_run(store, 0, [Outcome(5, probability=0.9)])}/run.json"
        if recorded:
            store.put(key, json.dumps(json.loads(store.get(key)) | {"threshold": 0.62}).encode())
        page = written_report(store, tmp_path / "night.html")
        assert ("called positive operating point" in page.text or "operating point called" in page.text) == recorded
        assert ("Its threshold 0.62" in page.text) == recorded
