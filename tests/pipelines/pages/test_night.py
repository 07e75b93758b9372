"""The night report: its counts are the table's, its tasks follow from the run, and it shows no more than it should."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.report import write_report
from models.bundle import Bundle, save_bundle
from models.explain import picture, saliency
from models.networks.zoo import build
from models.spec import ModelSpec
from models.statistics.calibration import Calibration
from pipelines.contracts import Reason
from pipelines.decoding.decode import decode
from pipelines.pages.card import render_card
from pipelines.pages.frame import data_uri
from pipelines.pages.night import figures, maps, todo, worklist
from pipelines.pages.night.history import Night, courses
from pipelines.phantom import dicom_bytes, encode
from pipelines.storage import Store, open_store
from pipelines.table.drift import DriftFinding, Level
from pipelines.table.query import open_scores, read_scores
from tests.models.synthetic import blob_films, small_spec
from tests.pipelines.pages.samples import HOSTILE, MODEL_ID, Outcome, Page, read_page, write_run
from tests.servers import S3Server

OTHER_MODEL = "ffeeddccbbaa9988"

NIGHT = [
    Outcome(1500, probability=0.03),
    Outcome(300, probability=0.97, site="south"),
    Outcome(1, probability=1.0),
    Outcome(8, reason="truncated", status="unreadable"),
    Outcome(4, reason="not_frontal", status="rejected", site=None),
]


def report(store: Store, out: Path, thumbnails: int = 0) -> Page:
    uri = write_report(store.root, str(out), thumbnails=thumbnails)
    assert uri == f"file://{out}"
    return read_page(out.read_text())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "it"))


class TestRun:
    def test_counts_shares_and_advice(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT[:2])
        newest = write_run(store, 1, NIGHT, resumed_shards=3)
        page = report(store, tmp_path / "night.html")
        assert "Night report: 2026-11-20" in page.text
        assert "Planned 1,813 of 90,000 listed" in page.text
        assert "Scored 1,801 99.3 %" in page.text
        assert "Called positive 301 16.7 % of those scored" in page.text
        assert "Not scored 12 0.7 %" in page.text
        assert "Rate 140.3 scans a second; 3 shards were done by an earlier attempt" in page.text
        assert "every scan is accounted for" in page.text
        # the archive holds both nights
        assert "3,613 scans stand in the table" in page.text
        assert f"truncated {todo.ADVICE[Reason.TRUNCATED]} 8 8 unreadable" in page.text
        assert f"not_frontal {todo.ADVICE[Reason.NOT_FRONTAL]} 4 4 rejected" in page.text
        assert f"{newest} {MODEL_ID} 1,813 1,801 4 8 0 16.7 % 3 min 20 s" in page.text
        assert "highest probability called negative is 0.03, the lowest called positive 0.97" in page.text
        assert page.charts[0] == "Histogram of the probabilities of this run, by call"

    def test_where_all_of_the_listing_was_new_no_rest_is_spoken_of(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, listed=1_813)
        assert "Planned 1,813 all that were listed" in report(store, tmp_path / "night.html").text

    def test_sites(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        page = report(store, tmp_path / "night.html")
        assert "north 1,509 1,501 8 1 0.1 %" in page.text
        assert "south 300 300 0 300 100.0 %" in page.text
        assert "not recorded 4 0 4 0" in page.text

    def test_only_the_busiest_sites_are_shown(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(30 - n, probability=0.2, site=f"site-{n}") for n in range(25)])
        page = report(store, tmp_path / "night.html")
        assert "site-0 30" in page.text
        assert "site-20 10" not in page.text
        assert "The 20 sites with most scans; 5 more are not shown." in page.text

    def test_an_unfinished_run_says_how_to_go_on(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, state="unfinished", planned=5000)
        page = report(store, tmp_path / "night.html")
        assert "This run is not finished: 3,187 of 5,000 scans are not written yet" in page.text
        assert "run the same command again" in page.text

    def test_a_night_without_anything_new(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        write_run(store, 1, [])
        page = report(store, tmp_path / "night.html")
        assert "Nothing was new" in page.text
        assert "1,813 scans stand in the table" in page.text
        assert "No film of this run has a probability." in page.text
        assert "Histogram" not in " ".join(page.charts)

    def test_everything_called_alike(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(5, probability=0.9)])
        assert "all scans were called alike" in report(store, tmp_path / "night.html").text

    def test_hostile_text_is_text(self, store: Store, tmp_path: Path) -> None:
        rows = [Outcome(3, reason=HOSTILE, status="failed", site=HOSTILE), Outcome(2, probability=0.4, site=HOSTILE)]
        write_run(store, 0, rows, source=HOSTILE, operating_point=HOSTILE)
        page = report(store, tmp_path / "night.html")
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


def finding(level: Level, site: str | None = None, quantity: str = "grey_mean", **changes: Any) -> dict[str, Any]:
    """As run.json holds it."""
    values: dict[str, Any] = {"n": 500, "psi": 0.614, "ks": 0.4, "note": "90 % of them above the reference's median"}
    if quantity == "reject_share":
        values = {"n": 500, "psi": None, "ks": None, "note": "9.0 % tonight, 2.0 % in the earlier runs", "share": 0.09}
    return DriftFinding(site=site, quantity=quantity, level=level, **{**values, **changes}).to_json()


class TestTasks:
    def test_the_worst_comes_first(self, store: Store, tmp_path: Path) -> None:
        drift = [finding("ok"), finding("warn", "north"), finding("alarm", "south", quantity="ood_score")]
        outcomes = [*NIGHT, Outcome(5, reason="access_denied", status="failed")]
        write_run(store, 0, outcomes, drift=drift, given_up=7, lost_workers=1)
        text = report(store, tmp_path / "night.html").text
        told = [
            "ALARM Drift at south: distance. Do not trust the probabilities",
            "Distance: PSI 0.61, KS 0.40; 90 % of them above the reference's median.",
            "warning 5 scans failed (access_denied). The store refused to hand it out.",
            "warning Given up: 7 scans that failed on too many nights.",
            "warning Drift at north: brightness. Look at some",
            "note Shards were begun again once",
            "note 8 scans cannot be read (truncated). The file ends too early",
            "note 301 films are called positive.",
        ]
        places = [text.index(words) for words in told]
        assert places == sorted(places)
        assert places[-1] < text.index("Planned")

    def test_many_unreadable_files_are_a_warning(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(90, probability=0.1), Outcome(10, reason="corrupt", status="unreadable")])
        assert "warning 10 scans cannot be read" in report(store, tmp_path / "night.html").text

    def test_drift_everywhere_does_not_bury_the_rest(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, drift=[finding("alarm", f"site-{n:03d}") for n in range(180)])
        page = report(store, tmp_path / "night.html")
        assert page.text.count("ALARM Drift at") == todo.SITES_NAMED + 1
        assert "Drift at 175 more sites." in page.text

    def test_a_quiet_night_asks_for_nothing(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(90, probability=0.1)])
        assert "What to do next note Nothing." in report(store, tmp_path / "night.html").text

    def test_every_reason_has_advice(self) -> None:
        assert set(todo.ADVICE) == set(Reason)


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
        page = report(store, tmp_path / "night.html")
        assert "Drift ALARM worst of all sites" in page.text
        assert "All sites 500 ok PSI 0.02 · KS 0.03 warning 9.0 %" in page.text
        assert "loud 500 ALARM PSI 0.61 · KS 0.40 calm 500 ok PSI 0.61 · KS 0.40 small 3 too few" in page.text
        assert "more or fewer patients have pneumonia" in page.text
        assert page.marked("alarm") == 1 + 2  # in the table; in the task, with its border

    def test_only_the_worst_sites_are_shown(self, store: Store, tmp_path: Path) -> None:
        drift = [finding("ok" if n < 29 else "alarm", f"site-{n}") for n in range(30)]
        write_run(store, 0, NIGHT, drift=drift)
        page = report(store, tmp_path / "night.html")
        assert "site-29 500 ALARM" in page.text
        assert "The 20 sites with the worst drift; 10 more are not shown." in page.text

    @pytest.mark.parametrize(
        ("record", "says"),
        [
            ({}, "recorded no drift: it is of an earlier version"),
            ({"state": "unfinished"}, "Drift is judged when the run is finished."),
            ({"drift": [finding("too_few", note="the bundle has no fingerprint")]}, "the bundle has no fingerprint."),
        ],
    )
    def test_no_drift_says_why(self, store: Store, tmp_path: Path, record: dict[str, Any], says: str) -> None:
        write_run(store, 0, NIGHT, **record)
        page = report(store, tmp_path / "night.html")
        assert says in page.text
        assert "ALARM" not in page.text

    def test_nothing_new_has_no_films_to_judge(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        write_run(store, 1, [], drift=[])
        assert "There was no film to judge." in report(store, tmp_path / "night.html").text


class TestWorklist:
    def test_the_highest_probabilities_first(self, store: Store, tmp_path: Path) -> None:
        day = {"study_date": date(2026, 11, 18)}
        write_run(store, 0, [Outcome(1, probability=0.99999)])  # not of tonight
        rows = [Outcome(1, probability=0.31), Outcome(1, probability=0.978, site="south", columns=day)]
        write_run(store, 1, [*rows, Outcome(60, probability=0.02), Outcome(1, reason="blank", status="rejected")])
        page = report(store, tmp_path / "night.html")
        assert "0.9780 called positive south · 2026-11-18 s3://hospital/scans/1-1-0.dcm" in page.text
        assert "0.3100 called negative north · study date not recorded s3://hospital/scans/1-0-0.dcm" in page.text
        assert page.text.index("1-1-0.dcm") < page.text.index("1-0-0.dcm")
        assert page.text.count(".dcm") == worklist.LENGTH
        assert page.images == []
        assert "images of patients" not in page.text

    def test_no_probability_is_rounded_to_certainty(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(1, probability=0.99999), Outcome(1, probability=0.00001)])
        text = report(store, tmp_path / "night.html").text
        assert ">0.9999 called positive" in text
        assert "<0.0001 called negative" in text

    def test_thumbnails_come_from_the_archive_and_what_is_gone_is_said(self, store: Store, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path / "archive"))
        pixels = np.random.default_rng(3).integers(0, 255, (90, 70), dtype=np.uint8)
        archive.put("a.jpeg", encode(pixels, "jpeg"))
        archive.put("b.dcm", dicom_bytes(pixels))
        archive.put("c.png", encode(pixels, "png"))
        archive.put("d.jpeg", b"no longer a film")
        etags = {info.key: info.etag for chunk in archive.list() for info in chunk}
        archive.put("c.png", encode(pixels[::-1], "png") + b"changed")
        etags["gone.jpeg"] = "e"
        outcomes = [
            Outcome(1, probability=0.9 - n / 100, columns={"uri": archive.uri(key), "etag": etag})
            for n, (key, etag) in enumerate(sorted(etags.items()))
        ]
        write_run(store, 0, [*outcomes, Outcome(3, probability=0.1)])
        page = report(store, tmp_path / "night.html", thumbnails=5)
        assert "This page holds images of patients" in page.text
        assert page.text.index("images of patients") < page.text.index("What to do next")
        assert len(page.images) == 2
        assert {(image["width"], image["alt"]) for image in page.images} == {
            ("160", "Thumbnail of film 1"),
            ("160", "Thumbnail of film 2"),
        }
        assert "can no longer be read: changed" in page.text
        assert "can no longer be read: unknown_format" in page.text
        assert "can no longer be read: vanished" in page.text

    def test_as_many_films_as_thumbnails(self, store: Store, tmp_path: Path) -> None:
        missing = open_store(str(tmp_path / "archive")).uri("a.jpeg")
        write_run(store, 0, [Outcome(40, probability=0.9, columns={"uri": missing})])
        page = report(store, tmp_path / "night.html", thumbnails=30)
        assert page.text.count("can no longer be read") == 30


class TestMaps:
    """Beside the first thumbnails, by the model that scored the films."""

    @pytest.fixture
    def films(self, tmp_path: Path) -> list[Outcome]:
        """Fifteen films in an archive, and one that is gone."""
        archive = open_store(str(tmp_path / "archive"))
        for number, pixels in enumerate(blob_films(15, size=64).pixels):
            archive.put(f"{number:02d}.png", encode(pixels, "png"))
        etags = {archive.uri(info.key): info.etag for chunk in archive.list() for info in chunk}
        etags[archive.uri("99.png")] = "e"
        return [
            Outcome(1, probability=0.9 - n / 100, columns={"uri": uri, "etag": etag})
            for n, (uri, etag) in enumerate(sorted(etags.items(), reverse=True))
        ]

    def bundle(self, folder: Path, spec: ModelSpec) -> Bundle:
        torch.manual_seed(3)
        network = build(spec)
        with torch.no_grad():
            for weights in network.parameters():
                torch.nn.init.normal_(weights, std=0.3)
        calibration = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
        state = network.state_dict()
        return save_bundle(
            folder,
            render_card=render_card,
            spec=spec,
            state_dict=state,
            calibration=calibration,
            evaluation={},
            lineage={},
        )

    def night(self, store: Store, films: list[Outcome], bundle: Bundle, uri: str | None = None) -> str:
        return write_run(store, 0, films, model_id=bundle.model_id, bundle=uri or str(bundle.folder))

    def test_the_first_films_that_can_be_read_have_maps(
        self, store: Store, tmp_path: Path, films: list[Outcome]
    ) -> None:
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        self.night(store, films, bundle)
        page = report(store, tmp_path / "night.html", thumbnails=16)
        alts = [str(image["alt"]) for image in page.images]
        assert alts[:4] == ["Thumbnail of film 2", "Map over film 2", "Thumbnail of film 3", "Map over film 3"]
        assert sum(alt.startswith("Thumbnail") for alt in alts) == 15
        assert sum(alt.startswith("Map") for alt in alts) == maps.MOST - 1
        assert alts[-1] == "Thumbnail of film 16"
        assert f"The coloured copies of {maps.MOST - 1} films" in page.text
        assert "not a finding" in page.text

        archive, _, name = str(films[1].columns["uri"]).rpartition("/")
        pixels = decode(open_store(archive).get(name), bundle.spec.preprocessing).pixels
        heat = saliency(bundle.classifier(), pixels)
        assert page.images[1]["src"] == data_uri(picture(pixels, heat, side=worklist.SIDE))

    def test_no_thumbnails_no_maps(self, store: Store, tmp_path: Path, films: list[Outcome]) -> None:
        self.night(store, films, self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8)))
        page = report(store, tmp_path / "night.html")
        assert page.images == []
        assert "coloured" not in page.text
        assert "No maps" not in page.text

    def test_a_model_that_looks_nowhere_leaves_the_thumbnails_plain(
        self, store: Store, tmp_path: Path, films: list[Outcome]
    ) -> None:
        self.night(store, films, self.bundle(tmp_path / "model", small_spec("majority", 64)))
        page = report(store, tmp_path / "night.html", thumbnails=3)
        assert [image["alt"] for image in page.images] == ["Thumbnail of film 2", "Thumbnail of film 3"]
        assert "No maps: no place of these films raises its score." in page.text

    @pytest.mark.parametrize(
        ("lies", "says"),
        [
            ("nowhere", r"No maps: .*nowhere/bundle.json is missing; .* is not a whole bundle\."),
            ("other", r"No maps: another model \(\w{16}\) lies at .*other now\."),
            ("broken", r"No maps: .*weights.safetensors was changed after the bundle was made; .*\."),
        ],
    )
    def test_without_the_runs_model_the_page_says_why(
        self, store: Store, tmp_path: Path, films: list[Outcome], lies: str, says: str
    ) -> None:
        bundle = self.bundle(tmp_path / "broken", small_spec("mlp", 64, width=8))
        self.bundle(tmp_path / "other", small_spec("mlp", 64, width=16))
        if lies == "broken":
            (tmp_path / "broken" / "weights.safetensors").write_bytes(b"x")
        self.night(store, films, bundle, str(tmp_path / lies))
        page = report(store, tmp_path / "night.html", thumbnails=3)
        assert re.search(says, page.text)
        assert [image["alt"] for image in page.images] == ["Thumbnail of film 2", "Thumbnail of film 3"]

    def test_a_network_that_fails_costs_the_maps_and_is_told(
        self, store: Store, tmp_path: Path, films: list[Outcome], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As torch does where a network cannot do what is asked of it, or has no memory for it."""
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        self.night(store, films, bundle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("models.networks.zoo.MLP.forward", lambda *_: torch.ones(2) @ torch.ones(3))
            page = report(store, tmp_path / "night.html", thumbnails=3)
        assert "No maps: the model failed (inconsistent tensor size" in page.text
        assert len(page.images) == 2
        assert "no maps on the worklist" in caplog.text
        assert "Traceback" in caplog.text

    def test_a_slow_network_is_not_waited_for(self, store: Store, tmp_path: Path, films: list[Outcome]) -> None:
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        run_id = self.night(store, films, bundle)
        shown = worklist.with_thumbnails(read_scores(store.root, lambda scores: worklist.worklist(scores, run_id, 3)))
        mapped, _ = maps.with_maps(shown, str(bundle.folder), bundle.model_id)
        assert [film.map is not None for film in mapped] == [False, True, True]
        late, told = maps.with_maps(shown, str(bundle.folder), bundle.model_id, seconds=-1)
        assert late == shown
        assert told == "No maps: this model is too slow."


class TestNightsBefore:
    def test_figures_of_tonight_and_before(self, store: Store, tmp_path: Path) -> None:
        for number, positives in enumerate((10, 20, 30)):
            outcomes = [Outcome(100 - positives, probability=0.1), Outcome(positives, probability=0.9)]
            write_run(store, number, [*outcomes, Outcome(25, reason="blank", status="rejected")])
        write_run(store, 3, [Outcome(60, probability=0.1), Outcome(40, probability=0.9)])
        page = report(store, tmp_path / "night.html")
        assert page.charts[1:] == [
            "Scans: 100 tonight, 125 in the 3 nights before (median, dashed)",
            "Called positive, % of the scored: 40 tonight, 20 in the 3 nights before (median, dashed)",
            "Rejected or unreadable, %: 0 tonight, 20 in the 3 nights before (median, dashed)",
            "Scans per second: 140 tonight, 140 in the 3 nights before (median, dashed)",
        ]

    def test_a_first_night(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT)
        page = report(store, tmp_path / "night.html")
        assert "This is the first run of this model." in page.text
        assert len(page.charts) == 1

    def test_only_thirty_nights_count(self, store: Store, tmp_path: Path) -> None:
        for number in range(33):
            write_run(store, number, [Outcome(1000 if number < 3 else 5, probability=0.1)])
        page = report(store, tmp_path / "night.html")
        assert "Scans: 5 tonight, 5 in the 29 nights before" in page.text
        assert "The newest 30 runs; 3 older ones are not shown." in page.text

    def test_nights_without_anything_new_have_no_shares(self) -> None:
        empty = Night(date="2026-11-01", scans=0, scored=0, positives=0, left_out=0, rate=None)
        assert [course.caption for course in courses([empty, empty])] == [
            "Scans: 0 tonight, 0 in the night before (median, dashed)"
        ]


class TestModels:
    def test_the_page_is_about_the_newest_runs_model_only(self, store: Store, tmp_path: Path) -> None:
        rows = [Outcome(50, probability=0.9), Outcome(10, probability=0.1)]
        write_run(store, 0, rows, model_id=OTHER_MODEL)
        write_run(store, 1, [Outcome(30, probability=0.1)])
        write_run(store, 1, [Outcome(30, probability=0.9)], model_id=OTHER_MODEL)
        write_run(store, 2, [Outcome(5, probability=0.1), Outcome(1, reason="vanished", status="failed")])
        page = report(store, tmp_path / "night.html")
        assert "36 scans stand in the table, from this run or an earlier one of this model: 35 scored" in page.text
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
        assert "1 scans stand in the table" in (text := report(store, tmp_path / "night.html").text)
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
        assert says in report(store, tmp_path / "night.html").text

    @pytest.mark.parametrize("recorded", [True, False])
    def test_a_recorded_threshold_is_drawn_where_the_calls_do_not_tell_it(
        self, store: Store, tmp_path: Path, recorded: bool
    ) -> None:
        key = f"runs/{write_run(store, 0, [Outcome(5, probability=0.9)])}/run.json"
        if recorded:
            store.put(key, json.dumps(json.loads(store.get(key)) | {"threshold": 0.62}).encode())
        page = report(store, tmp_path / "night.html")
        assert ("called positive operating point" in page.text or "operating point called" in page.text) == recorded
        assert ("Its threshold 0.62" in page.text) == recorded
