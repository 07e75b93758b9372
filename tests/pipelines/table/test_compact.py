"""Compaction changes files, never rows: whoever reads, whoever else compacts, wherever it dies."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import PART
from pipelines.errors import InputError
from pipelines.storage import ObjectInfo, Store, open_store
from pipelines.table import compact as compaction
from pipelines.table.compact import compact, compact_store
from pipelines.table.parts import REPLACES, PartVanishedError, is_compacted, list_scores, live_parts, local_parts
from pipelines.table.query import ask, read_scores

MODEL = "12e4567890123456"
OTHER = "fedcba9876543210"


class Killed(BaseException):
    """The end of the process."""


def write_night(store: Store, day: int, parts: int, *, model: str = MODEL, rows: int = 3, record: bool = True) -> str:
    """A run of January 2026 (day 32 is the first of February) with so many parts; returns its id."""
    began = datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=day - 1)
    run = f"{began:%Y%m%dT%H%M%SZ}-{model[:6]}"
    for shard in range(parts):
        write_shard(store, run, shard, model=model, rows=rows)
    store.put(f"runs/{run}/plan.json", json.dumps({"run_id": run, "model_id": model}).encode())
    if record:
        finish(store, run)
    return run


def finish(store: Store, run: str) -> None:
    store.put(f"runs/{run}/run.json", json.dumps({"run_id": run, "counts": {}}).encode())


def write_shard(store: Store, run: str, shard: int, *, model: str = MODEL, rows: int = 3) -> None:
    began = datetime.strptime(run[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    # Uris of different runs and shards interleave, so that sorting by uri means something.
    uris = [f"s3://films/{row:03d}/{run[6:8]}-{shard:02d}.dcm" for row in range(rows)]
    full: list[dict[str, Any]] = [
        {
            **dict.fromkeys(PART.names),
            "scan_id": f"{model}{run}{uri}",
            "uri": uri,
            "etag": "e",
            "status": "scored",
            "class_probabilities": [0.25, 0.75],
            "probability": 0.75,
            "decoder_version": "1",
            "plan_version": 0,
            "supersedes": False,
            "run_id": run,
            "shard": shard,
            "scored_at": began,
        }
        for uri in uris
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(full, schema=PART), sink)
    key = f"scores/model={model}/date={began:%Y-%m-%d}/{run}-{shard:05d}.parquet"
    store.put(key, sink.getvalue().to_pybytes())


def rows_of(store: Store) -> list[str]:
    """The scan_id of every row a reader sees, sorted."""
    for _ in range(5):
        with suppress(PartVanishedError):
            parts = local_parts(store, list_scores(store, "scores"))
            tables = [pq.read_table(part, columns=["scan_id"], partitioning=None) for part in parts]
            return sorted(scan for table in tables for scan in table["scan_id"].to_pylist())
    raise AssertionError("the parts never stood still")


def keys_of(store: Store) -> set[str]:
    return {info.key for chunk in store.list("scores") for info in chunk}


@dataclass(frozen=True)
class Watched(Store):
    """A store that calls `before` with the number and name of each operation that changes or reads an object."""

    before: Callable[[int, str], None] = lambda number, name: None

    def _tick(self, name: str) -> None:
        count = self.__dict__.get("count", 0)
        object.__setattr__(self, "count", count + 1)
        self.before(count, name)

    def list(self, prefix: str = "") -> Iterator[list[ObjectInfo]]:
        self._tick("list")
        return super().list(prefix)

    def get(self, key: str) -> bytes:
        self._tick("get")
        return super().get(key)

    def create(self, key: str, data: bytes) -> bool:
        self._tick("create")
        made = super().create(key, data)
        self._tick("created")
        return made

    def delete(self, key: str) -> None:
        self._tick("delete")
        super().delete(key)
        self._tick("deleted")


@pytest.fixture(params=["local", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return open_store(str(tmp_path / "it's [here]" / "scores"))
    server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return open_store(f"{server.bucket()}/scores")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "scores"))


def test_small_parts_of_a_month_become_one(store: Store) -> None:
    for day in (1, 2, 30):
        write_night(store, day, 3)
    write_night(store, 33, 2)
    write_night(store, 2, 2, model=OTHER)
    before = rows_of(store)
    question = "SELECT run_id, date, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL"
    nights = ask(store.root, question)
    months = compact(store.root)
    assert [(month.model_id, month.month, month.parts_before, month.parts_after, month.rows) for month in months] == [
        (MODEL, "2026-01", 9, 1, 27),
        (MODEL, "2026-02", 2, 1, 6),
        (OTHER, "2026-01", 2, 1, 6),
    ]
    assert keys_of(store) == {
        f"scores/model={MODEL}/date=2026-01-01/compact-00001.parquet",
        f"scores/model={MODEL}/date=2026-02-01/compact-00001.parquet",
        f"scores/model={OTHER}/date=2026-01-01/compact-00001.parquet",
    }
    assert rows_of(store) == before
    assert ask(store.root, question).equals(nights)
    assert len(set(nights["date"].to_pylist())) == 4


def test_a_compacted_part_is_as_any_other_and_says_what_it_replaces(local: Store) -> None:
    write_night(local, 1, 2)
    write_night(local, 3, 2)
    originals = keys_of(local)
    compact(local.root)
    (key,) = keys_of(local)
    file = pq.ParquetFile(local.path / key)
    table = file.read()
    assert table.schema.equals(PART)
    assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
    assert table["class_probabilities"].to_pylist() == [[0.25, 0.75]] * 12
    assert set(json.loads(file.metadata.metadata[REPLACES])) == originals


def test_what_is_compact_is_left_alone_and_what_is_new_is_taken_in(local: Store) -> None:
    write_night(local, 1, 2)
    write_night(local, 33, 1)
    compact(local.root)
    files = {key: (local.path / key).stat().st_mtime_ns for key in keys_of(local)}
    assert compact(local.root) == []
    assert {key: (local.path / key).stat().st_mtime_ns for key in keys_of(local)} == files
    write_night(local, 2, 2)
    before = rows_of(local)
    (month,) = compact(local.root)
    assert (month.month, month.parts_before, month.parts_after) == ("2026-01", 3, 1)
    assert f"scores/model={MODEL}/date=2026-01-01/compact-00002.parquet" in keys_of(local)
    assert rows_of(local) == before


def test_parts_of_an_unfinished_run_stay(local: Store) -> None:
    write_night(local, 1, 3)
    run = write_night(local, 2, 3, record=False)
    compact(local.root)
    left = {key for key in keys_of(local) if not is_compacted(key)}
    assert left == {f"scores/model={MODEL}/date=2026-01-02/{run}-{shard:05d}.parquet" for shard in range(3)}
    finish(local, run)
    compact(local.root)
    assert len(keys_of(local)) == 1


def test_only_the_named_model_is_compacted(local: Store) -> None:
    write_night(local, 1, 2)
    write_night(local, 1, 2, model=OTHER)
    assert [month.model_id for month in compact(local.root, model=OTHER)] == [OTHER]
    assert len(keys_of(local)) == 3


def test_a_compacted_part_holds_no_more_than_its_share(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ROWS", 10)
    for day in range(1, 8):
        write_night(local, day, 2)
    before = rows_of(local)
    compact(local.root)
    sizes = [pq.read_metadata(local.path / key).num_rows for key in keys_of(local)]
    assert max(sizes) <= 10
    assert len(sizes) <= 42 // 9 + 1
    assert rows_of(local) == before
    assert compact(local.root) == []


def test_a_late_writer_of_a_replaced_part_doubles_nothing(store: Store) -> None:
    run = write_night(store, 1, 3)
    before = rows_of(store)
    compact(store.root)
    write_shard(store, run, 1)
    assert rows_of(store) == before
    assert ask(store.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 9}]
    write_night(store, 2, 2)
    compact(store.root)
    write_shard(store, run, 2)  # replaced two compactions ago
    before = rows_of(store)
    assert len(before) == len(set(before)) == 15
    compact(store.root)
    assert len(keys_of(store)) == 1
    assert rows_of(store) == before


def test_a_question_under_way_is_asked_again_of_the_new_parts(store: Store) -> None:
    write_night(store, 1, 3)
    calls: list[int] = []

    def question(connection: duckdb.DuckDBPyConnection) -> int:
        calls.append(len(calls))
        if len(calls) == 1:
            compact(store.root)
        [(count,)] = connection.sql("SELECT count(uri || scan_id) FROM scores").fetchall()
        return int(count)

    assert read_scores(store.root, question) == 9
    assert len(calls) == (2 if store.is_local else 1)  # the mirror of a remote store still holds the old parts


def test_a_reader_that_listed_before_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_night(store, 1, 3)
    objects = list_scores(store)
    compact(store.root)
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache of another machine"))
    if store.is_local:
        assert not any(part.exists() for part in local_parts(store, objects))
    else:
        with pytest.raises(PartVanishedError):
            local_parts(store, objects)
    assert len(rows_of(store)) == 9


def test_replaced_parts_leave_the_mirror(s3_conditional: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    store = open_store(f"{s3_conditional.bucket()}/scores")
    write_night(store, 1, 3)
    ask(store.root)
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 3
    compact(store.root)
    ask(store.root)
    (kept,) = (tmp_path / "cache").rglob("*.parquet")
    assert kept.name.startswith("compact-00001")


def test_a_listing_that_a_compaction_overtakes_does_not_count(local: Store) -> None:
    """The first listing shows the old parts of one page only, and nothing of what replaced the others."""
    write_night(local, 1, 2)
    before = rows_of(local)
    old = [info for chunk in local.list() for info in chunk]
    compact(local.root)
    lists: list[int] = []

    class Overtaken(Store):
        def list(self, prefix: str = "") -> Iterator[list[ObjectInfo]]:
            lists.append(0)
            if len(lists) == 1:
                yield old[:-1]
            else:
                yield from super().list(prefix)

    parts = live_parts(local, list_scores(Overtaken(local.root)))
    assert [part.key for part in parts] == [f"scores/model={MODEL}/date=2026-01-01/compact-00001.parquet"]
    assert rows_of(local) == before


def test_a_name_that_was_used_before_is_not_believed(local: Store) -> None:
    """Held up before its put, a compaction writes `compact-00001` long after that was replaced and deleted."""
    write_night(local, 1, 2)

    def others(number: int, name: str) -> None:
        if name == "create" and not done:
            done.append(number)
            compact(local.root)
            write_night(local, 2, 2)
            compact(local.root)
            assert keys_of(local) == {f"scores/model={MODEL}/date=2026-01-01/compact-00002.parquet"}

    done: list[int] = []
    compact_store(Watched(local.root, others))
    rows = rows_of(local)
    assert len(rows) == len(set(rows)) == 12
    assert keys_of(local) == {f"scores/model={MODEL}/date=2026-01-01/compact-00002.parquet"}


def test_the_late_part_of_a_dead_compaction_hides_nothing(local: Store) -> None:
    """It names a part that no live one holds; what a dead part names does not count."""
    run = write_night(local, 1, 2)
    compact(local.root)
    (key,) = keys_of(local)
    first = local.get(key)
    write_night(local, 2, 1)
    compact(local.root)
    write_night(local, 3, 1)
    fresh = next(key for key in keys_of(local) if not is_compacted(key))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, PART) as writer:
        writer.write_table(pq.read_table(pa.BufferReader(first)).cast(PART))
        writer.add_key_value_metadata({REPLACES.decode(): json.dumps([fresh, f"{run}-x"])})
    local.put(key, sink.getvalue().to_pybytes())
    rows = rows_of(local)
    assert len(rows) == len(set(rows)) == 12
    compact(local.root)
    assert rows_of(local) == rows
    assert len(keys_of(local)) == 1


def test_a_spoilt_part_is_named_and_nothing_is_lost(local: Store) -> None:
    write_night(local, 1, 3)
    spoilt = sorted(keys_of(local))[1]
    local.put(spoilt, local.get(spoilt)[:-30])
    before = keys_of(local)
    with pytest.raises(InputError, match=r"-00001\.parquet"):
        compact(local.root)
    assert keys_of(local) == before


@settings(max_examples=25, deadline=None)
@given(
    nights=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    done=st.integers(0, 2),
    share=st.sampled_from([7, 13, 1000]),
    events=st.dictionaries(st.integers(0, 60), st.sampled_from(["kill", "compact", "zombie"]), max_size=3),
)
def test_every_row_is_seen_once_at_every_moment(
    nights: list[int], done: int, share: int, events: dict[int, str]
) -> None:
    """A reader before each step; at some of them the process dies, another one compacts, a dead run writes again."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "ROWS", share)
        store = open_store(folder)
        runs = [write_night(store, day, parts) for day, parts in enumerate(nights[:done], start=1)]
        compact_store(store)
        runs += [write_night(store, day, parts) for day, parts in enumerate(nights[done:], start=done + 1)]
        expected = rows_of(store)
        assert len(expected) == len(set(expected)) == 3 * sum(nights)

        def before(number: int, name: str) -> None:
            assert rows_of(store) == expected, (number, name)
            event = events.get(number)
            if event == "kill":
                raise Killed
            if event == "compact":
                compact_store(store)
            if event == "zombie":
                write_shard(store, runs[0], 0)

        with suppress(Killed):
            compact_store(Watched(store.root, before))
        assert rows_of(store) == expected
        compact_store(store)
        compact_store(store)
        assert rows_of(store) == expected
        assert len(keys_of(store)) == len(live_parts(store, list_scores(store)))
