"""Compaction changes files, never rows: whoever reads, whoever else compacts, wherever it dies."""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import PART
from pipelines.errors import InputError, StorageError
from pipelines.storage import Store, open_store
from pipelines.table import compact as compaction
from pipelines.table.compact import compact, compact_model, remove_unused
from pipelines.table.delta import create_table
from pipelines.table.query import ask, read_scores
from tests.pipelines.table.parts import put_part, rows_of, score_row
from tests.servers import S3Server

MODEL = "12e4567890123456"
OTHER = "fedcba9876543210"


class Killed(BaseException):
    """The end of the process."""


def write_night(store: Store, day: int, parts: int, *, model: str = MODEL, record: bool = True) -> str:
    """A run of January 2026 with so many parts of three rows, committed; returns its id."""
    began = datetime(2026, 1, day, 2, tzinfo=UTC)
    run = f"{began:%Y%m%dT%H%M%SZ}-{model[:6]}"
    table = create_table(store, conditional=store.has_conditional_put())
    # Uris of different runs and shards interleave, so that sorting by uri means something.
    rows = [[score_row(f"s3://films/{row}/{day}-{shard:02d}.dcm") for row in range(3)] for shard in range(parts)]
    table.commit(
        [put_part(store, run, shard, rows[shard], model_id=model, day=began.date()) for shard in range(parts)], run
    )
    store.put(f"runs/{run}/plan.json", json.dumps({"run_id": run, "model_id": model}).encode())
    if record:
        finish(store, run)
    return run


def finish(store: Store, run: str) -> None:
    store.put(f"runs/{run}/run.json", json.dumps({"run_id": run, "counts": {}}).encode())


def names_of(store: Store) -> list[str]:
    return [part.name for part in create_table(store, conditional=True).parts()]


def files_of(store: Store) -> set[str]:
    return {info.key for chunk in store.list("scores") for info in chunk if info.key.endswith(".parquet")} - {
        info.key for chunk in store.list("scores/_delta_log") for info in chunk
    }


@dataclass(frozen=True)
class Watched(Store):
    """A store that calls `before` with the number of each operation that reads or writes an object."""

    before: Callable[[int], None] = lambda number: None

    def _tick(self) -> None:
        count = self.__dict__.get("count", 0)
        object.__setattr__(self, "count", count + 1)
        self.before(count)

    def get(self, key: str) -> bytes:
        self._tick()
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        self._tick()
        super().put(key, data)
        self._tick()

    def create(self, key: str, data: bytes) -> bool:
        self._tick()
        made = super().create(key, data)
        self._tick()
        return made


@pytest.fixture(params=["local", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "it's [here]" / "scores"))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return open_store(f"{server.bucket()}/scores")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "scores"))


def test_small_parts_of_a_day_become_one(store: Store) -> None:
    write_night(store, 1, 3)
    write_night(store, 2, 1)
    write_night(store, 2, 2, model=OTHER)
    before = rows_of(store)
    question = "SELECT run_id, date, model_id, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL"
    nights = ask(store.root, question)
    days = compact(store.root)
    assert [(day.model_id, f"{day.date}", day.parts_before, day.parts_after, day.rows) for day in days] == [
        (MODEL, "2026-01-01", 3, 1, 9),
        (OTHER, "2026-01-02", 2, 1, 6),
    ]
    assert len(names_of(store)) == 3
    assert rows_of(store) == before
    assert ask(store.root, question).equals(nights)
    assert compact(store.root) == []


def test_a_merged_part_is_as_any_other_in_the_order_of_uris(local: Store) -> None:
    write_night(local, 1, 4)
    compact(local.root)
    (name,) = names_of(local)
    table = pq.read_table(next(local.path.rglob(name)), partitioning=None)
    assert table.schema.equals(PART)
    assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
    assert table["class_probabilities"].to_pylist() == [[0.5, 0.5]] * 12


def test_parts_of_an_unfinished_run_stay(local: Store) -> None:
    run = write_night(local, 2, 3, record=False)
    assert compact(local.root) == []
    finish(local, run)
    compact(local.root)
    assert len(names_of(local)) == 1


def test_only_the_named_model_is_compacted(local: Store) -> None:
    write_night(local, 1, 2)
    write_night(local, 1, 2, model=OTHER)
    assert [day.model_id for day in compact(local.root, model=OTHER)] == [OTHER]
    assert len(names_of(local)) == 3


def test_a_merged_part_holds_no_more_than_its_share(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ROWS", 10)
    monkeypatch.setattr(compaction, "ROWS_PER_GROUP", 5)
    write_night(local, 1, 9)
    before = rows_of(local)
    compact(local.root)
    assert max(part.rows for part in create_table(local, conditional=True).parts()) <= 10
    assert len(names_of(local)) == 3
    assert rows_of(local) == before


def test_the_small_parts_are_deleted_when_nobody_can_read_them_any_more(store: Store) -> None:
    write_night(store, 1, 3)
    compact(store.root)
    assert len(files_of(store)) == 4
    assert remove_unused(store) == 0
    compact(store.root, keep=timedelta(0))
    assert len(files_of(store)) == 1
    assert len(rows_of(store)) == 9


def test_a_question_under_way_has_its_answer(store: Store) -> None:
    write_night(store, 1, 3)

    def question(connection: duckdb.DuckDBPyConnection) -> int:
        compact(store.root)
        [(count,)] = connection.sql("SELECT count(uri || scan_id) FROM scores").fetchall()
        return int(count)

    assert read_scores(store.root, question) == 9


def test_a_question_whose_files_are_gone_is_told(local: Store) -> None:
    write_night(local, 1, 3)

    def question(connection: duckdb.DuckDBPyConnection) -> object:
        compact(local.root, keep=timedelta(0))
        return connection.sql("SELECT count(uri || scan_id) FROM scores").fetchall()

    with pytest.raises(StorageError, match="has left the scores while they were read; ask again"):
        read_scores(local.root, question)


def test_a_spoilt_part_is_named_and_nothing_is_lost(local: Store) -> None:
    write_night(local, 1, 3)
    spoilt = sorted(files_of(local))[1]
    local.put(spoilt, local.get(spoilt)[:-30])
    before = files_of(local)
    with pytest.raises(InputError, match=r"-00001\.parquet"):
        compact(local.root)
    assert files_of(local) == before
    assert len(names_of(local)) == 3


@settings(max_examples=20, deadline=None)
@given(
    nights=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    events=st.dictionaries(st.integers(0, 12), st.sampled_from(["kill", "compact", "zombie"]), max_size=3),
)
def test_every_row_is_seen_once_at_every_moment(nights: list[int], events: dict[int, str]) -> None:
    """A reader before each step; at some of them the process dies, another one compacts, a dead run writes again."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        runs = [write_night(store, 1 + night % 2, parts, model=MODEL) for night, parts in enumerate(nights[:2])]
        expected = rows_of(store)

        def before(number: int) -> None:
            assert rows_of(store) == expected, number
            event = events.get(number)
            if event == "kill":
                raise Killed
            if event == "compact":
                compact_model(create_table(store, conditional=True), MODEL)
            if event == "zombie":
                put_part(store, runs[0], 0, ["s3://films/zombie.dcm"], model_id=MODEL, day=datetime(2026, 1, 9).date())

        with suppress(Killed, StorageError):  # of two at once one is told that the parts have changed
            compact_model(create_table(Watched(store.root, before), conditional=True), MODEL)
        assert rows_of(store) == expected
        compact_model(create_table(store, conditional=True), MODEL)
        remove_unused(store, timedelta(0))
        assert rows_of(store) == expected
        assert len(files_of(store)) == len(names_of(store))
