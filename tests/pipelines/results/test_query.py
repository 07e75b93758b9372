"""SQL over scores: what each view shows, wherever the parts lie."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import SCORES
from pipelines.errors import InputError
from pipelines.results.query import ask
from pipelines.storage import Store, open_store
from tests.servers import S3Server

MODEL = "12e4567890123456"  # reads as a number where nobody says it is text
START = datetime(2026, 1, 1, tzinfo=UTC)


def write_run(store: Store, name: str, rows: list[dict[str, Any]], *, hours: int, model: str = MODEL) -> None:
    """A run of one part and its record."""
    full = [
        {
            **dict.fromkeys(SCORES.names),
            "scan_id": f"{row['uri']}-{row.get('etag', 'v1')}",
            "etag": "v1",
            "model_id": model,
            "run_id": name,
            "shard": 0,
            "scored_at": START + timedelta(hours=hours),
            **row,
        }
        for row in rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(full, schema=SCORES), sink)
    store.put(f"scores/model={model}/date=2026-01-01/{name}-00000.parquet", sink.getvalue().to_pybytes())
    store.put(f"runs/{name}/run.json", f'{{"run_id": "{name}", "planned": {len(rows)}, "counts": {{}}}}'.encode())
    store.put(f"runs/{name}/plan.json", b"{}")


def fill(store: Store) -> Store:
    write_run(
        store,
        "night1",
        [
            {"uri": "a", "status": "scored", "probability": 0.25},
            {"uri": "b", "status": "failed", "reason": "storage_error"},
            {"uri": "c", "status": "unreadable", "reason": "truncated"},
        ],
        hours=0,
    )
    write_run(
        store,
        "night2",
        [
            {"uri": "a", "status": "failed", "reason": "vanished"},
            {"uri": "b", "status": "scored", "probability": 0.75},
        ],
        hours=24,
    )
    return store


@pytest.fixture(params=["local", "awkward", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    if request.param in {"local", "awkward"}:
        return fill(open_store(str(tmp_path / {"local": "s", "awkward": "it's [a] *new* place?"}[request.param])))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return fill(open_store(f"{server.bucket()}/scores"))


def test_latest_has_one_row_a_file_and_a_failure_never_hides_a_score(scores: Store) -> None:
    rows = ask(scores.root, "SELECT uri, status, probability, model_id FROM latest ORDER BY uri").to_pylist()
    assert rows == [
        {"uri": "a", "status": "scored", "probability": 0.25, "model_id": MODEL},
        {"uri": "b", "status": "scored", "probability": 0.75, "model_id": MODEL},
        {"uri": "c", "status": "unreadable", "probability": None, "model_id": MODEL},
    ]


def test_scores_has_every_row_and_rejects_those_without_a_score(scores: Store) -> None:
    assert ask(scores.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 5}]
    assert ask(scores.root, "SELECT uri, reason FROM rejects").to_pylist() == [{"uri": "c", "reason": "truncated"}]


def test_asked_nothing_it_sums_up(scores: Store) -> None:
    summary = ask(scores.root).to_pylist()
    assert [(row["status"], row["reason"], row["scans"]) for row in summary] == [
        ("scored", "", 2),
        ("unreadable", "truncated", 1),
    ]


def test_a_run_without_a_record_shows_as_unfinished(scores: Store) -> None:
    scores.put("runs/night3/plan.json", b'{"run_id": "night3", "planned": 7}')
    rows = ask(scores.root, "SELECT run_id, state, planned FROM runs").to_pylist()
    assert [(row["run_id"], row["state"], row["planned"]) for row in rows] == [
        ("night1", "finished", 3),
        ("night2", "finished", 2),
        ("night3", "unfinished", 7),
    ]


def test_remote_parts_are_fetched_once_and_kept_private(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    store = fill(open_store(f"{s3.bucket()}/scores"))
    ask(store.root)
    kept = sorted((tmp_path / "cache").rglob("*.parquet"))
    assert len(kept) == 2
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    written = [path.stat().st_mtime_ns for path in kept]
    write_run(store, "night3", [{"uri": "d", "status": "scored", "probability": 0.5}], hours=48)
    assert ask(store.root, "SELECT count(*) AS n FROM latest").to_pylist() == [{"n": 4}]
    assert [path.stat().st_mtime_ns for path in kept] == written


@pytest.mark.parametrize("sql", ["SELECT nothing FROM nowhere", "SELEC 1"])
def test_a_question_without_an_answer_is_the_askers_error(tmp_path: Path, sql: str) -> None:
    store = fill(open_store(str(tmp_path)))
    with pytest.raises(InputError, match="cannot be answered"):
        ask(store.root, sql)


def test_a_place_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run was recorded"):
        ask(str(tmp_path))


def test_others_read_the_parts_without_rayscan(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    partitions = ds.partitioning(pa.schema([("model", pa.string()), ("date", pa.date32())]), flavor="hive")
    table = ds.dataset(store.path / "scores", partitioning=partitions).to_table()
    assert table.num_rows == 5
    assert set(table["model"].to_pylist()) == {MODEL}


@pytest.mark.parametrize("place", ["site=south", "date=backup", "date=2020-01-01", "model=x/status=y"])
def test_folders_above_the_scores_are_no_columns(tmp_path: Path, place: str) -> None:
    store = open_store(str(tmp_path / place / "scores"))
    write_run(store, "night1", [{"uri": "a", "status": "scored", "site": "north"}], hours=0)
    (row,) = ask(store.root, "SELECT site, status, model_id, date FROM scores").to_pylist()
    assert row == {"site": "north", "status": "scored", "model_id": MODEL, "date": START.date()}


def test_a_spoilt_part_is_named(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    for chunk in store.list("scores"):
        for info in chunk:
            store.put(info.key, store.get(info.key)[:-20])
    with pytest.raises(InputError, match=r"the scores cannot be read: .*night\d-00000\.parquet"):
        ask(store.root)
