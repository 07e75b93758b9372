"""One shard, one part: whoever writes it, however often, and whatever lies beside it."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import PART
from pipelines.scoring.plan import Plan
from pipelines.scoring.sink import part_key, write_part, written_sizes
from pipelines.storage import Store, open_store
from pipelines.table.delta import Part
from tests.servers import S3Server

PLAN = Plan(
    run_id="20260101T000000Z-abc123",
    model_id="1234567890123456",
    bundle="file:///bundle",
    operating_point="balanced",
    source="file:///archive",
    date="2026-01-01",
    planned=6,
    listed=6,
    shards=3,
    bytes=6,
    plan_hash="0",
    created="2026-01-01T00:00:00+00:00",
)


def rows(writer: str) -> pa.Table:
    row = {
        **dict.fromkeys(PART.names),
        "scan_id": "s",
        "uri": "u",
        "etag": writer,
        "status": "failed",
        "reason": "vanished",
        "decoder_version": "1",
        "plan_version": 0,
        "supersedes": False,
        "run_id": PLAN.run_id,
        "shard": 1,
        "scored_at": datetime.now(UTC),
    }
    return pa.Table.from_pylist([row], schema=PART)


def writer_of(store: Store) -> str:
    table = pq.read_table(pa.BufferReader(store.get(part_key(PLAN, 1))))
    assert table.schema == PART
    return str(table["etag"][0])


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    return open_store(f"{request.getfixturevalue('s3_conditional').bucket()}/scores")


def test_the_first_part_stays(store: Store) -> None:
    first = write_part(store, PLAN, 1, rows("first"))
    assert write_part(store, PLAN, 1, rows("second, which is longer")) == first
    assert writer_of(store) == "first"
    assert written_sizes(store, PLAN) == {1: first.size}


def test_of_many_writers_at_once_all_see_the_part_of_one(store: Store) -> None:
    written: list[Part] = []
    start = threading.Barrier(8)

    def write(name: str) -> None:
        start.wait()
        written.append(write_part(store, PLAN, 1, rows(name * (1 + int(name[-1])))))

    threads = [threading.Thread(target=write, args=(f"writer-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer_of(store).startswith("writer-")
    assert {part.size for part in written} == {store.head(part_key(PLAN, 1)).size}
    assert [info.key for chunk in store.list() for info in chunk] == [part_key(PLAN, 1)]


def test_without_conditional_put_the_same_name_is_replaced(s3: S3Server) -> None:
    store = open_store(s3.bucket())
    write_part(store, PLAN, 1, rows("first"))
    write_part(store, PLAN, 1, rows("second"))
    assert writer_of(store) == "second"
    assert [info.key for chunk in store.list() for info in chunk] == [part_key(PLAN, 1)]


def test_only_this_runs_whole_parts_count(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_part(store, PLAN, 0, rows("mine"))
    whole = part_key(PLAN, 2)
    (tmp_path / f"{whole}#1").write_bytes(b"half")  # what a killed local put leaves
    for other in (f"{whole}.bad", whole.replace("abc123", "ffffff"), whole.replace(".parquet", "-old.parquet")):
        store.put(other, b"a part moved away, or of another run")
    assert set(written_sizes(store, PLAN)) == {0}
