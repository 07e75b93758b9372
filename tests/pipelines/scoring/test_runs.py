"""A night on a real Ray: every scan accounted for, nothing scored twice, a broken-off run taken up again."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.engines.choice import load_engine
from pipelines import progress
from pipelines.bundles import fetch_bundle
from pipelines.decoding.decode import decode
from pipelines.errors import AccessError, IncompleteError, InputError, NotFoundError
from pipelines.scoring import runs
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.plan import Plan, read_shard
from pipelines.scoring.reconcile import reconcile
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.scoring.score import ScoreShard
from pipelines.scoring.sink import part_key, part_of, write_part, written_sizes
from pipelines.storage import Store, open_store
from pipelines.table import marks
from pipelines.table.delta import create_table
from pipelines.table.drift import DriftTally
from pipelines.table.query import ask
from pipelines.table.record import RunRecord
from tests.pipelines.pages.samples import read_page
from tests.pipelines.scoring.archive import BAD, GOOD, plan_of
from tests.servers import S3Server

SETTINGS = ScoreSettings(shard_size=3, thumbnails=2)
TOTAL = GOOD + len(BAD)
ONE_SHARD = ScoreSettings(shard_size=TOTAL)  # one actor to start, where it does not matter how many there are


def plan_behind(out: Store, record: RunRecord) -> Plan:
    return Plan(**json.loads(out.get(f"runs/{record.run_id}/plan.json")))


@pytest.fixture(scope="module")
def night(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, ray_session: None
) -> tuple[Store, Store, list[RunRecord]]:
    """Archive, scores and records of one finished run."""
    from tests.pipelines.scoring.archive import write_films

    archive = open_store(str(tmp_path_factory.mktemp("night") / "archive"))
    write_films(archive)
    out = open_store(str(tmp_path_factory.mktemp("night") / "scores"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "KEPT_FROM_ROWS", TOTAL)
        return archive, out, score(archive.root, str(bundle), out.root, SETTINGS)


def test_the_report_beside_the_run_shows_the_films_that_were_asked_for(
    night: tuple[Store, Store, list[RunRecord]],
) -> None:
    _, out, (record,) = night
    page = read_page(out.get(f"runs/{record.run_id}/report.html").decode())
    assert [image["alt"] for image in page.images if "Thumbnail" in str(image["alt"])] == [
        "Thumbnail of film 1",
        "Thumbnail of film 2",
    ]
    assert "what raised the score" in page.text or "no part of these films raises its score" in page.text


def test_a_large_night_leaves_what_the_first_question_needs(night: tuple[Store, Store, list[RunRecord]]) -> None:
    _, out, _ = night
    parts = create_table(out, conditional=True).parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "KEPT_FROM_ROWS", TOTAL)
        assert marks.kept_marks(out, parts).keys() == {marks.part_name(part) for part in parts}
    assert [info.key.rpartition(".")[2] for chunk in out.list(marks.MARKS) for info in chunk] == ["npz"]


def test_too_many_thumbnails_are_refused_before_the_night() -> None:
    with pytest.raises(InputError, match="101 thumbnails are out of range; choose 0 to 100"):
        ScoreSettings(thumbnails=101)


def test_every_scan_has_the_row_it_should(night: tuple[Store, Store, list[RunRecord]]) -> None:
    archive, out, (record,) = night
    assert record.planned == TOTAL == sum(record.counts.values())
    rows = {row["uri"]: row for row in ask(out.root, "SELECT * FROM scores").to_pylist()}
    assert len(rows) == TOTAL
    for key, outcome in BAD.items():
        row = rows[archive.uri(key)]
        assert (row["status"], row["reason"]) == outcome
        assert row["probability"] is None
        assert row["prediction"] is None
    assert sum(row["status"] == "scored" for row in rows.values()) == GOOD


def test_probabilities_are_those_of_the_engine(night: tuple[Store, Store, list[RunRecord]], bundle: Path) -> None:
    archive, out, _ = night
    model = fetch_bundle(str(bundle))
    engine = load_engine(model)
    for row in ask(out.root, "SELECT * FROM scores WHERE status = 'scored'").to_pylist():
        pixels = decode(archive.get(row["uri"].removeprefix(archive.root + "/")), model.spec.preprocessing).pixels
        expected = engine(pixels[None]).probabilities[0]
        assert row["class_probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["probability"] == pytest.approx(1 - expected[0], abs=1e-5)
        assert row["prediction"] == ("PNEUMONIA" if row["probability"] >= 0.5 else "NORMAL")
        assert (row["operating_point"], row["model_id"]) == ("balanced", model.model_id)


def test_the_record_says_what_was_done(night: tuple[Store, Store, list[RunRecord]]) -> None:
    _, out, (record,) = night
    written = json.loads(out.get(f"runs/{record.run_id}/run.json"))
    assert written["counts"] == dict(record.counts)
    assert sum(written["reasons"].values()) == len(BAD)
    assert written["shards"] == -(-TOTAL // 3)
    assert written["conditional_put"] is True
    assert written["notice"] == "rayscan assists triage; it is not a diagnosis."
    assert (written["engine"]["name"], written["engine"]["precision"]) == ("torch-eager-fp32-cpu", "fp32")
    assert written["bytes"] > 0
    assert written["megabytes_per_second"] > 0
    assert set(written["stage_seconds"]) == {"fetch", "decode", "infer", "write"}
    assert written["threshold"] == 0.5
    assert 1 <= written["cpus"] <= 4
    assert written["plan_hash"] == plan_behind(out, record).plan_hash
    assert not list(out.list(f"runs/{record.run_id}/attempts")), "notes of a finished run are swept"


def test_an_unchanged_archive_is_not_scored_again(
    night: tuple[Store, Store, list[RunRecord]], bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive, out, _ = night
    with caplog.at_level(logging.INFO, "rayscan"):
        (record,) = score(archive.root, str(bundle), out.root, SETTINGS)
    assert (record.planned, record.listed) == (0, TOTAL)
    assert "nothing new" in caplog.text
    assert ask(out.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": TOTAL}]


@pytest.mark.usefixtures("ray_session")
def test_a_broken_off_run_is_taken_up_under_its_own_plan(
    archive: Store, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    out, six_a_shard = open_store(str(tmp_path / "scores")), ScoreSettings(shard_size=6)
    (first,) = score(archive.root, str(bundle), out.root, six_a_shard)
    plan = plan_behind(out, first)
    out.delete(f"runs/{first.run_id}/run.json")
    table = create_table(out, conditional=True)
    for shard in (1, 2):
        table.replace([table.run_parts(plan.run_id, plan.model_id)[shard]], [], {}, finished=())
        out.delete(part_key(plan, shard))
    kept = out.head(part_key(plan, 0)).etag
    archive.put("late.png", archive.get("films/1.png"))
    with pytest.raises(IncompleteError, match="2 of"):
        reconcile(create_table(out, conditional=True), plan, DriftTally(None))

    with caplog.at_level(logging.INFO, "rayscan"):
        again, new = score(archive.root, str(bundle), out.root, six_a_shard)
    assert "score: 10 of 10 scans" in caplog.text, "what this attempt has to do, not the whole run"
    assert (again.run_id, again.resumed_shards, again.planned) == (first.run_id, plan.shards - 2, TOTAL)
    assert (new.planned, new.counts["scored"]) == (1, 1)
    assert out.head(part_key(plan, 0)).etag == kept, "a finished shard is not written again"
    assert ask(out.root, "SELECT count(*) AS n, count(DISTINCT scan_id) AS ids FROM scores").to_pylist() == [
        {"n": TOTAL + 1, "ids": TOTAL + 1}
    ]


@pytest.mark.usefixtures("ray_session")
def test_what_fails_after_the_record_changes_nothing(
    archive: Store, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = open_store(str(tmp_path / "scores"))

    def without_fonts(scores: str, thumbnails: int) -> str:
        raise ZeroDivisionError("no fonts here")

    def without_rights(store: Store, run_id: str) -> None:
        raise AccessError("may not delete")

    monkeypatch.setattr("pipelines.pages.night.page.night_page", without_fonts)
    monkeypatch.setattr(runs, "forget_attempts", without_rights)
    with caplog.at_level(logging.WARNING, "rayscan"):
        (record,) = score(archive.root, str(bundle), out.root, ONE_SHARD)
    assert record.counts["scored"] == GOOD
    assert out.exists(f"runs/{record.run_id}/run.json")
    (attempts, report) = caplog.records
    assert "is recorded, but the notes of its attempts were not removed (may not delete)" in attempts.message
    assert "ZeroDivisionError: no fonts here" in report.message
    assert "rayscan report" in report.message
    assert report.exc_info, "for the log of the process"


@pytest.mark.usefixtures("ray_session")
def test_a_run_that_lacks_only_its_record_gets_it(archive: Store, bundle: Path, tmp_path: Path) -> None:
    out, moved = open_store(str(tmp_path / "scores")), tmp_path / "moved"
    (first,) = score(archive.root, str(bundle), out.root, ONE_SHARD)
    out.delete(f"runs/{first.run_id}/run.json")
    shutil.copytree(bundle, moved)
    again, new = score(archive.root, str(moved), out.root, ONE_SHARD)
    assert (again.run_id, again.counts, again.resumed_shards) == (first.run_id, first.counts, first.shards)
    assert (again.bundle, new.planned) == (f"file://{moved}", 0)


def test_a_plan_made_by_one_whose_lease_was_taken_meanwhile_is_no_plan(
    archive: Store, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that slept between listing and planning: its plan beside that of the other would double every row."""
    out = open_store(str(tmp_path / "scores"))
    plan_of = runs.make_plan

    def while_asleep(store: Store, **what: object) -> Plan:
        out.put(f"leases/model={what['model_id']}/00001000.json", b'{"owner": "another", "process": null}')
        return plan_of(store, **what)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "make_plan", while_asleep)
    with pytest.raises(IncompleteError, match="another run has taken over"):
        score(archive.root, str(bundle), out.root, SETTINGS)
    assert not [info.key for chunk in out.list("runs") for info in chunk]


def test_a_plan_written_after_another_run_planned_is_no_plan(archive: Store, bundle: Path, tmp_path: Path) -> None:
    """A plans and stalls; B takes its lease, plans and scores; A wakes up and writes its plan; C is the next night."""
    out = open_store(str(tmp_path / "scores"))

    def planned_under(generation: int) -> Plan:
        return plan_of(out, archive, bundle, shard_size=TOTAL, confirm=lambda: generation)

    a = planned_under(1)
    late = out.get(f"runs/{a.run_id}/plan.json")
    out.delete(f"runs/{a.run_id}/plan.json")
    b = planned_under(2)
    summary = ScoreShard(out.root, b, choose_layout(1, 0, 1))({"shard": np.array([0])})
    part = part_of(b, 0, size=summary["part_bytes"][0], rows=TOTAL)
    create_table(out, conditional=True).commit([part], b.run_id)
    out.put(f"runs/{b.run_id}/run.json", json.dumps({"model_id": b.model_id, "planned": TOTAL}).encode())
    out.put(f"runs/{a.run_id}/plan.json", late)

    (c,) = score(archive.root, str(bundle), out.root, ONE_SHARD)  # no Ray: there is nothing to do
    assert (a.planned, b.planned, c.planned) == (TOTAL, TOTAL, 0)
    assert ask(out.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": TOTAL}]
    assert not out.exists(f"runs/{a.run_id}/plan.json")


def test_a_store_without_conditional_put_is_told_first(
    bundle: Path, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    # That it doubles nothing stands in tests/integration/test_line_on_s3.py.
    out = s3.bucket()
    with caplog.at_level(logging.WARNING, "rayscan"), pytest.raises(NotFoundError, match="nowhere"):
        score("s3://nowhere", str(bundle), out, SETTINGS)
    assert caplog.messages == [f"{out} has no conditional put: one run at a time can work there, of any model"]


@pytest.mark.usefixtures("ray_session")
def test_files_that_vanish_or_change_under_a_run_fail_and_are_tried_again(
    archive: Store, bundle: Path, tmp_path: Path
) -> None:
    from pipelines.ingest.catalog import CatalogSettings, build_catalog

    out = open_store(str(tmp_path / "scores"))
    build_catalog(archive.root, str(tmp_path / "catalog"), CatalogSettings())
    archive.delete("films/0.jpeg")
    archive.put("films/1.png", archive.get("films/4.png"))
    (record,) = score(str(tmp_path / "catalog"), str(bundle), out.root, ONE_SHARD)
    assert record.counts["failed"] == 2
    assert record.reasons["vanished"] == record.reasons["changed"] == 1
    again = score(archive.root, str(bundle), out.root, ONE_SHARD)[-1]
    assert (again.planned, again.counts["scored"]) == (1, 1), "the file as it is now; the vanished one is not listed"


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("fault", ["other rows", "no Parquet"])
def test_a_spoilt_part_of_an_unfinished_run_is_scored_once_more(
    archive: Store, bundle: Path, tmp_path: Path, fault: str
) -> None:
    out, six_a_shard = open_store(str(tmp_path / "scores")), ScoreSettings(shard_size=6, report=False)
    (first,) = score(archive.root, str(bundle), out.root, six_a_shard)
    plan = plan_behind(out, first)
    name = part_key(plan, 1)
    out.delete(f"runs/{first.run_id}/run.json")
    out.put(name, out.get(part_key(plan, 0)) if fault == "other rows" else out.get(name)[:-20])
    told = "not the 6 scans of its shard" if fault == "other rows" else "cannot be read"
    with pytest.raises(IncompleteError, match=f"{name} .*{told}; it was removed: run the same command again"):
        score(archive.root, str(bundle), out.root, six_a_shard)
    assert 1 not in create_table(out, conditional=True).run_parts(plan.run_id, plan.model_id)


def test_the_second_writer_of_a_shard_loses(night: tuple[Store, Store, list[RunRecord]]) -> None:
    _, out, (record,) = night
    plan = plan_behind(out, record)
    before = out.get(part_key(plan, 0))
    rows: pa.Table = ask(out.root, "SELECT * FROM scores WHERE shard = 0")
    write_part(out, plan, 0, rows)
    assert out.get(part_key(plan, 0)) == before
    assert read_shard(out, plan.run_id, 0).num_rows == 3


def test_half_written_objects_are_not_parts(night: tuple[Store, Store, list[RunRecord]]) -> None:
    _, out, (record,) = night
    plan = plan_behind(out, record)
    orphan = out.path / f"{part_key(plan, 0)}#1"  # what a killed local put leaves
    orphan.write_bytes(b"half")
    assert set(written_sizes(out, plan)) == set(range(plan.shards))
    assert ask(out.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": TOTAL}]


def test_an_unknown_operating_point_is_refused(archive: Store, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rule_out"):
        score(archive.root, str(bundle), str(tmp_path / "s"), ScoreSettings(operating_point="rule_in"))
