"""From the bytes of a scan to its row, without Ray. The oracle is the slow way: decode, engine, one film at a time."""

import json
import threading
from collections import Counter
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest

from models.bundle import Bundle
from models.engines.choice import Engine
from models.engines.engine import Inference
from models.statistics.calibration import Calibration
from pipelines.contracts import PART, PLAN, Reason, Status
from pipelines.decoding import film as film_module
from pipelines.decoding.decode import decode
from pipelines.decoding.film import FilmResult, ReadSettings, read_film
from pipelines.errors import BundleError, IncompleteError
from pipelines.ingest.listing import list_archive
from pipelines.phantom import dicom_bytes, encode
from pipelines.provenance import Provenance, patient_key
from pipelines.scoring.attempts import MAX_ATTEMPTS, begin_attempt, forget_attempts, lost_workers, take_back
from pipelines.scoring.films import FAILURES_IN_A_ROW, FilmReader
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.plan import Plan, make_plan, read_shard
from pipelines.scoring.score import InferShard, ReadShard, ScoreShard, Verdict, infer, to_scores
from pipelines.scoring.sink import part_key
from pipelines.shards import Stage, run_shards
from pipelines.storage import Store, _kept_store, open_store
from tests.pipelines.scoring.archive import BAD, GOOD, of_class, plan_of, reads
from tests.servers import S3Server

TOTAL = GOOD + len(BAD)
FILM = encode(np.random.default_rng(9).integers(0, 255, (40, 48), dtype=np.uint8), "png")
PIXELS = np.random.default_rng(6).integers(0, 255, (40, 48), dtype=np.uint8)


def listed(store: Store) -> pa.Table:
    """The archive as rows of a plan, in the order of their names."""
    (table,) = list_archive(store)
    return (
        table.append_column("shard", pa.array([0] * table.num_rows, pa.int32()))
        .append_column("supersedes", pa.array([False] * table.num_rows))
        .select(PLAN.names)
        .sort_by("uri")
    )


@pytest.fixture
def plan(archive: Store, bundle: Path, tmp_path: Path) -> Plan:
    return plan_of(open_store(str(tmp_path / "scores")), archive, bundle, shard_size=10)


@pytest.mark.parametrize("batch", [1, 4, GOOD, 64])
def test_every_film_gets_its_own_probability(
    archive: Store, model: Bundle, engine: Engine, reader: FilmReader, batch: int
) -> None:
    rows = listed(archive)
    films, verdicts, _ = infer(reader.read(rows), engine, batch)
    assert len(films) == len(verdicts) == TOTAL
    assert all(film.pixels is None for film in films), "the pixels of a shard are not kept"
    for uri, size, film, verdict in zip(
        rows["uri"].to_pylist(), rows["size"].to_pylist(), films, verdicts, strict=True
    ):
        key = uri.removeprefix(f"{archive.root}/")
        assert film.size == size
        assert (verdict.status, verdict.reason) == BAD.get(key, ("scored", None))
        if key in BAD:
            assert verdict.classes is None
        else:
            pixels = decode(archive.get(key), model.spec.preprocessing).pixels
            np.testing.assert_allclose(verdict.classes, engine(pixels[None]).probabilities[0], atol=1e-6)
    given = {tuple(verdict.classes) for verdict in verdicts if verdict.classes is not None}
    assert len(given) == GOOD, "films that score alike could be swapped unseen"


def test_more_scans_than_are_fetched_ahead_stay_in_order(
    model: Bundle, engine: Engine, reader: FilmReader, tmp_path: Path
) -> None:
    store, rng = open_store(str(tmp_path)), np.random.default_rng(8)
    films = {f"{n:03d}.png": rng.integers(0, 255, (32, 32), dtype=np.uint8) for n in range(120)}
    for name, pixels in films.items():
        store.put(name, encode(pixels, "png"))
    _, verdicts, _ = infer(reader.read(listed(store)), engine, 8)
    expected = engine(np.stack(list(films.values()))).probabilities
    np.testing.assert_allclose([v.classes for v in verdicts], expected, atol=1e-6)


def test_a_film_beyond_the_limit_has_its_distance_and_no_probability(archive: Store, model: Bundle) -> None:
    def engine(pixels: npt.NDArray[np.uint8]) -> Inference:
        count = len(pixels)
        return Inference(np.full((count, 2), 0.5, np.float32), pixels.mean(axis=(1, 2)).astype(np.float32))

    films = [FilmResult(pixels=np.full((32, 32), level, np.uint8)) for level in (10, 200, 30)] + [
        FilmResult(reason=Reason.BLANK)
    ]
    _, verdicts, _ = infer(films, engine, 2, limit=100)  # type: ignore[arg-type]
    assert [(v.status, v.reason, v.distance) for v in verdicts] == [
        ("scored", None, 10),
        ("rejected", "unfamiliar", 200),
        ("scored", None, 30),
        ("rejected", "blank", None),
    ]
    assert [v.classes is None for v in verdicts] == [False, True, False, True]


def test_an_unfamiliar_film_may_keep_its_probability_for_research(plan: Plan, archive: Store, model: Bundle) -> None:
    def engine(pixels: npt.NDArray[np.uint8]) -> Inference:
        return Inference(np.full((len(pixels), 2), 0.5, np.float32), np.full(len(pixels), 9.0, np.float32))

    films = [FilmResult(pixels=np.zeros((32, 32), np.uint8)), FilmResult(reason=Reason.BLANK)]
    _, verdicts, _ = infer(films, engine, 2, limit=1, score_unfamiliar=True)  # type: ignore[arg-type]
    rows = to_scores(listed(archive)[:2], verdicts, plan, 0, model.calibration).to_pylist()
    names = ("status", "reason", "probability", "prediction", "operating_point")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("rejected", "unfamiliar", 0.5, None, None),
        ("rejected", "blank", None, None, None),
    ]


def test_no_scans_are_no_rows(archive: Store, model: Bundle, engine: Engine, reader: FilmReader) -> None:
    assert infer(reader.read(listed(archive)[:0]), engine, 8) == ([], [], 0.0)


def test_a_part_holds_the_plan_and_the_verdicts(plan: Plan, archive: Store, model: Bundle, tmp_path: Path) -> None:
    out = open_store(str(tmp_path / "scores"))
    actor = ScoreShard(out.root, plan, choose_layout(1, 0, plan.shards))
    (summary, other) = ({k: v[0] for k, v in actor({"shard": np.array([n])}).items()} for n in (0, 1))
    assert (summary["shard"], summary["scans"], other["scans"]) == (0, 10, TOTAL - 10)
    assert summary["bytes"] + other["bytes"] == plan.bytes
    assert summary["engine"]["name"] == "torch-eager-fp32-cpu"

    planned = read_shard(out, plan.run_id, 1)
    part = pq.read_table(pa.BufferReader(out.get(part_key(plan, 1))))
    assert part.schema == PART
    assert part.select(["scan_id", "uri", "etag", "shard"]) == planned.select(["scan_id", "uri", "etag", "shard"])
    assert set(part["run_id"].to_pylist()) == {plan.run_id}
    for row in part.to_pylist():
        scored = row["status"] == "scored"
        assert scored == (row["reason"] is None)
        for name in ("probability", "class_probabilities", "prediction", "operating_point"):
            assert scored == (row[name] is not None)


def test_two_stages_write_what_one_does(plan: Plan, bundle: Path, archive: Store, tmp_path: Path) -> None:
    """The slow path is the oracle: what crosses from decoder to GPU actor changes nothing but the time."""
    out, layout = open_store(str(tmp_path / "scores")), choose_layout(1, 0, plan.shards)
    read, written = ReadShard(out.root, plan), InferShard(out.root, plan, layout)
    fused = ScoreShard(out.root, plan, layout)
    for shard in range(plan.shards):
        handed = {name: np.array(values, dtype=object) for name, values in read({"shard": np.array([shard])}).items()}
        summary = {k: v[0] for k, v in written(handed).items()}
        split = pq.read_table(pa.BufferReader(out.get(part_key(plan, shard)))).drop_columns("scored_at")
        out.delete(part_key(plan, shard))
        forget_attempts(out, plan.run_id)
        alone = {k: v[0] for k, v in fused({"shard": np.array([shard])}).items()}
        whole = pq.read_table(pa.BufferReader(out.get(part_key(plan, shard)))).drop_columns("scored_at")
        assert split.drop_columns(["probability", "class_probabilities"]) == whole.drop_columns(
            ["probability", "class_probabilities"]
        )
        for one, other in zip(split["probability"].to_pylist(), whole["probability"].to_pylist(), strict=True):
            assert one == (None if other is None else pytest.approx(other, abs=1e-6))
        assert (summary["scans"], summary["bytes"]) == (alone["scans"], alone["bytes"])


@pytest.mark.usefixtures("ray_session")
def test_two_stages_on_a_real_ray(plan: Plan, archive: Store, tmp_path: Path) -> None:
    out = open_store(str(tmp_path / "scores"))
    reading = {"scores": out.root, "plan": plan}
    writing = {**reading, "layout": choose_layout(1, 0, plan.shards)}
    summaries = run_shards(
        "split",
        [{"shard": shard} for shard in range(plan.shards)],
        Stage(actor=ReadShard, settings=reading, actors=2),
        Stage(actor=InferShard, settings=writing, actors=1, cpus=0),
    )
    assert sum(summary["scans"] for summary in summaries) == TOTAL
    statuses = Counter(
        status
        for shard in range(plan.shards)
        for status in pq.read_table(pa.BufferReader(out.get(part_key(plan, shard))))["status"].to_pylist()
    )
    assert statuses["scored"] == GOOD


class TestAttempts:
    """A shard that is begun again takes every scan for the one that killed its worker."""

    @pytest.fixture
    def out(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "scores"))

    def _rows(self, out: Store, plan: Plan) -> list[tuple[str, str | None]]:
        part = pq.read_table(pa.BufferReader(out.get(part_key(plan, 0))))
        return list(zip(part["status"].to_pylist(), part["reason"].to_pylist(), strict=True))

    def _score(self, out: Store, plan: Plan) -> dict[str, object]:
        actor = ScoreShard(out.root, plan, choose_layout(1, 0, plan.shards))
        return {k: v[0] for k, v in actor({"shard": np.array([0])}).items()}

    def test_attempts_are_counted_until_forgotten(self, out: Store, plan: Plan) -> None:
        assert [begin_attempt(out, plan.run_id, 0) for _ in range(3)] == [0, 1, 2]
        assert begin_attempt(out, plan.run_id, 1) == 0
        assert lost_workers(out, plan.run_id) == 2
        forget_attempts(out, plan.run_id)
        assert lost_workers(out, plan.run_id) == begin_attempt(out, plan.run_id, 0) == 0

    def test_isolation_changes_no_row(self, out: Store, plan: Plan) -> None:
        self._score(out, plan)
        first = self._rows(out, plan)
        out.delete(part_key(plan, 0))
        self._score(out, plan)
        assert self._rows(out, plan) == first
        assert lost_workers(out, plan.run_id) == 1

    def test_a_part_that_is_there_is_not_made_again(self, out: Store, plan: Plan) -> None:
        self._score(out, plan)
        etag = out.head(part_key(plan, 0)).etag
        summary = self._score(out, plan)
        assert out.head(part_key(plan, 0)).etag == etag
        assert (summary["scans"], summary["bytes"]) == (10, 0)

    def test_after_too_many_the_shard_is_given_up_for_tonight(self, out: Store, plan: Plan) -> None:
        for _ in range(MAX_ATTEMPTS + 1):
            begin_attempt(out, plan.run_id, 0)
        self._score(out, plan)
        assert self._rows(out, plan) == [("failed", "worker_lost")] * 10

    def test_an_attempt_that_the_store_ended_is_no_death(
        self, out: Store, bundle: Path, model: Bundle, s3: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remote, films = open_store(s3.bucket()), 2 * FAILURES_IN_A_ROW
        for number in range(films):
            remote.put(f"{number}.png", FILM)
        plan = plan_of(out, remote, bundle, shard_size=films)
        for _ in range(MAX_ATTEMPTS + 1):
            with pytest.MonkeyPatch.context() as outage:
                outage.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
                _kept_store.cache_clear()
                with pytest.raises(IncompleteError, match="in a row"):
                    self._score(out, plan)
        _kept_store.cache_clear()
        self._score(out, plan)
        assert Counter(self._rows(out, plan)) == {("scored", None): films}
        assert lost_workers(out, plan.run_id) == 0

    def test_of_shards_under_way_at_a_stop_the_newest_attempt_is_taken_back(self, out: Store, plan: Plan) -> None:
        for shard in (0, 0, 1, 2):  # shard 0 has died once
            begin_attempt(out, plan.run_id, shard)
        take_back(out, plan.run_id, {0, 1, 3})
        assert [begin_attempt(out, plan.run_id, shard) for shard in range(4)] == [1, 0, 1, 0]


def test_a_store_that_fails_again_and_again_stops_the_run(
    reader: FilmReader, model: Bundle, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = open_store(s3.bucket())
    uris = [remote.uri(f"{number}.png") for number in range(3 * FAILURES_IN_A_ROW)]
    rows = pa.table({"uri": uris, "etag": ["e"] * len(uris), "size": [1] * len(uris)})
    assert {film.reason for film in reader.read(rows)} == {Reason.VANISHED}, "files that are gone are no failing store"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    _kept_store.cache_clear()
    line = rf"{FAILURES_IN_A_ROW} scans in a row .*access_denied.*credentials"
    with pytest.raises(IncompleteError, match=line):
        list(reader.read(rows))
    small = FilmReader(reads(model), threads=4)
    list(small.read(rows.slice(0, FAILURES_IN_A_ROW - 1)))
    with pytest.raises(IncompleteError, match=line):  # small shards make it no quieter
        list(small.read(rows.slice(0, 1)))


def test_a_store_that_answers_slowly_gets_more_threads(model: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = threading.Event()

    def slow(uri: str, etag: str) -> bytes:
        pause.wait(0.02)
        return FILM

    rows = pa.table({"uri": ["file:///x"] * 64, "etag": ["e"] * 64, "size": [1] * 64})
    reader = FilmReader(reads(model), threads=2)
    monkeypatch.setattr(film_module, "fetch", slow)
    assert all(film.pixels is not None for film in reader.read(rows))
    assert reader.threads == 4
    monkeypatch.setattr(film_module, "fetch", lambda uri, etag: FILM)
    busy = FilmReader(reads(model), threads=2)
    for film in busy.read(rows):
        assert film.pixels is not None
        sum(range(200_000))  # the taker is the slow one
    assert busy.threads == 2


def test_an_actor_refuses_another_model(plan: Plan, tmp_path: Path, archive: Store) -> None:
    stranger = Plan(**{**vars(plan), "model_id": "0" * 16})
    with pytest.raises(BundleError, match=r"holds model [0-9a-f]{16}, the plan is for 0{16}"):
        ScoreShard(str(tmp_path / "scores"), stranger, choose_layout(1, 0, 1))


def test_the_decision_is_at_the_plans_operating_point(plan: Plan, archive: Store) -> None:
    calibration = Calibration(temperature=1.0, operating_points={"balanced": 0.5, "rule_out": 0.25})
    rows = listed(archive)[:4]
    at = [np.array([1 - p, p], dtype=np.float32) for p in (0.2, 0.25, 0.5)]
    verdicts = [Verdict(Status.SCORED, None, classes) for classes in at]
    verdicts.append(Verdict(Status.REJECTED, Reason.BLANK, None))

    def decided(point: str) -> list[str | None]:
        table = to_scores(rows, verdicts, Plan(**{**vars(plan), "operating_point": point}), 0, calibration)
        assert table["operating_point"].to_pylist() == [point] * 3 + [None]
        answer: list[str | None] = table["prediction"].to_pylist()
        return answer

    assert decided("balanced") == ["NORMAL", "NORMAL", "PNEUMONIA", None]
    assert decided("rule_out") == ["NORMAL", "PNEUMONIA", "PNEUMONIA", None]


def test_with_more_classes_the_probability_is_that_of_any_disease(plan: Plan, archive: Store) -> None:
    calibration = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    verdicts = [Verdict(Status.SCORED, None, np.array([0.4, 0.35, 0.25], dtype=np.float32))]
    (row,) = to_scores(listed(archive)[:1], verdicts, plan, 0, calibration).to_pylist()
    assert row["probability"] == pytest.approx(0.6)
    assert row["class_probabilities"] == pytest.approx([0.4, 0.35, 0.25])
    assert row["prediction"] == "PNEUMONIA"


def test_what_the_header_says_goes_into_the_row_and_identifiers_lie_apart(
    tmp_path: Path, bundle: Path, model: Bundle
) -> None:
    archive, scores = open_store(str(tmp_path / "archive")), open_store(str(tmp_path / "scores"))
    archive.put("north/film.dcm", dicom_bytes(PIXELS, patient_id="PHANTOM-0007"))
    archive.put("south/report.dcm", of_class(PIXELS, "1.2.840.10008.5.1.4.1.1.88.11"))
    archive.put("south/film.png", encode(PIXELS, "png"))
    plan = make_plan(
        scores, source=archive.root, bundle=str(bundle), model_id=model.model_id, operating_point="balanced"
    )
    provenance = Provenance(site_from="1", root=plan.source, secret="a secret of some length")
    read = ReadSettings(preprocessing=model.spec.preprocessing, provenance=provenance)
    for identity, files in ((False, 0), (True, 1)):
        actor = ScoreShard(scores.root, plan, choose_layout(1, 0, 1), read=read, identity=identity)
        actor({"shard": np.array([0])})
        rows = pq.read_table(pa.BufferReader(scores.get(part_key(plan, 0)))).to_pylist()
        kept = [info.key for chunk in scores.list("identity") for info in chunk]
        assert len(kept) == files
        if not identity:
            scores.delete(part_key(plan, 0))
    film, png, report = sorted(rows, key=lambda row: row["uri"])
    assert (film["site"], film["view"], film["modality"], film["study_date"]) == ("north", "PA", "DX", date(2024, 1, 1))
    assert (film["sex"], film["age_years"], film["presentation_intent"]) == ("O", 90, "FOR PRESENTATION")
    assert film["patient_key"] == patient_key("a secret of some length", "PHANTOM-0007", "north")
    assert (report["status"], report["reason"], report["detail"]) == ("rejected", "not_image", "Basic Text SR")
    assert (png["site"], png["patient_key"], png["view"]) == ("south", None, None)
    (kept,) = pq.read_table(pa.BufferReader(scores.get(kept[0]))).to_pylist()
    header = pydicom.dcmread(BytesIO(archive.get("north/film.dcm")))
    assert (kept["scan_id"], kept["instance_uid"]) == (film["scan_id"], header.SOPInstanceUID)
    assert header.StudyInstanceUID not in json.dumps(rows, default=str)


def test_what_the_catalogue_knows_goes_into_the_row(plan: Plan) -> None:
    known = {"site": "north", "patient_key": "5e" * 32, "study_date": date(2026, 1, 1)}
    row = {"scan_id": "s", "uri": "u", "etag": "e", "size": 1, "supersedes": True, "shard": 3, **known}
    calibration = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    verdicts = [Verdict(Status.FAILED, Reason.VANISHED, None)]
    (score,) = to_scores(pa.Table.from_pylist([row], schema=PLAN), verdicts, plan, 3, calibration).to_pylist()
    assert known.items() <= score.items()
    assert (score["shard"], score["status"], score["reason"], score["supersedes"]) == (3, "failed", "vanished", True)


def test_of_a_header_only_known_words_are_kept(archive: Store, model: Bundle) -> None:
    hip = archive.head("hip.dcm")
    film = read_film(archive.uri("hip.dcm"), hip.etag, hip.size, reads(model))
    assert (film.reason, film.pixels, film.grey) == (Reason.NOT_CHEST, None, None)
    assert (film.columns.body_part, film.columns.modality, film.patient_key) == ("HIP", "DX", None)
    assert "PHANTOM" not in repr(film)
    assert FilmResult.from_json(json.loads(json.dumps(film.to_json())), None) == film
