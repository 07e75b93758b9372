"""The plan of a run: what this model has not scored yet (the listing minus the table), cut into shards.

A plan is written whole before work starts and never changes:

    runs/<run_id>/plan/00000.parquet   up to SHARDS_PER_FILE shards, rows of contracts.PLAN
    runs/<run_id>/plan.json            written last; a plan without it does not exist

A scan is stale when this model has no row for its scan_id, or only `failed` ones of fewer than `max_nights` runs. A
changed file has a new scan_id and a new model has no rows, so both are stale by the same rule. `stale.py` finds them;
here they are numbered and written as a stream, so ten million planned rows are never in memory at once.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from secrets import token_hex

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts import PLAN
from pipelines.errors import InputError, RayscanError
from pipelines.scoring.stale import BATCH_ROWS, LISTED, STALE, ListedScans, with_stale
from pipelines.stop import Stop
from pipelines.storage import Store, open_store

SHARDS_PER_FILE = 64
ROWS_PER_GROUP = 16_384
WRITE_THREADS = 4
READ_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The unchanging description of one run."""

    run_id: str
    model_id: str
    bundle: str
    """URI the model was read from."""
    operating_point: str
    """Name of the locked threshold that decides `prediction`."""
    source: str
    """URI of the archive or catalogue."""
    date: str
    """Partition of the scores: the UTC day the run started, YYYY-MM-DD."""
    planned: int
    """Scans."""
    listed: int
    """Scans in the listing, including those already scored."""
    shards: int
    bytes: int
    """Size of the planned files."""
    plan_hash: str
    """BLAKE2b over the plan's rows."""
    created: str
    """ISO 8601, UTC."""
    given_up: int = 0
    """Scans listed but not planned, because they failed in too many runs."""
    table_version: int = 0
    """Version of the table it was planned from."""
    lease_generation: int = 0
    """Number of the lease it was planned under."""


def make_plan(
    store: Store,
    *,
    source: str,
    bundle: str,
    model_id: str,
    operating_point: str,
    shard_size: int,
    max_nights: int = 5,
    stop: Stop | None = None,
    confirm: Callable[[], int] = lambda: 0,
) -> Plan:
    """Plan a new run and write it; a scan that failed in `max_nights` runs is given up. `stop` ends it without a plan.

    `confirm` is called once the plan is made, before plan.json makes it valid: it gives the generation of the lease, or
    raises what this raises then, and no plan is left.
    Raises `NotFoundError` if the source is absent, `InputError` if it is empty or a part of the table is unreadable.
    """
    now = datetime.now(UTC)

    def write(connection: duckdb.DuckDBPyConnection, listing: ListedScans) -> Plan:
        # A new id per attempt: an aborted one leaves plan files without a plan.json, which is not a plan.
        run_id = f"{now:%Y%m%dT%H%M%SZ}-{token_hex(3)}"
        written = _Writer(store, run_id, shard_size)
        reader = connection.sql(f"{STALE} ORDER BY uri, scan_id").to_arrow_reader(BATCH_ROWS)
        written.write(reader)
        return Plan(
            run_id=run_id,
            model_id=model_id,
            bundle=open_store(bundle).root,
            operating_point=operating_point,
            source=open_store(source).root,
            date=f"{now:%Y-%m-%d}",
            planned=written.rows,
            listed=listing.distinct(connection),
            shards=-(-written.rows // shard_size),
            bytes=written.bytes,
            plan_hash=written.digest.hexdigest(),
            created=now.isoformat(),
            given_up=written.given_up,
        )

    plan = with_stale(store, source=source, model_id=model_id, max_nights=max_nights, use=write, stop=stop)
    try:
        plan = replace(plan, lease_generation=confirm())
    except RayscanError:
        forget_plan(store, plan)
        raise
    store.put(f"runs/{plan.run_id}/plan.json", json.dumps(asdict(plan), indent=1).encode())
    return plan


def newest_generation(store: Store, model_id: str) -> int:
    """The highest lease generation under which any plan of this model was made."""
    keys = [info.key for chunk in store.list("runs") for info in chunk if info.key.endswith("/plan.json")]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        plans = list(threads.map(lambda key: json.loads(store.get(key)), keys))
    return max((plan.get("lease_generation", 0) for plan in plans if plan["model_id"] == model_id), default=0)


def forget_plan(store: Store, plan: Plan) -> None:
    """Remove a plan on which nobody has begun to work; plan.json first, so that no half of one is ever a plan."""
    store.delete(f"runs/{plan.run_id}/plan.json")
    store.delete_all([info.key for chunk in store.list(f"runs/{plan.run_id}") for info in chunk])


def unfinished_plans(store: Store, model_id: str) -> list[Plan]:
    """Plans of this model without a run record, oldest first: a run that was killed is resumed under its own plan."""
    if store.is_local and not store.path.is_dir():
        return []
    keys = {info.key for chunk in store.list("runs") for info in chunk}
    unfinished = sorted(
        key for key in keys if key.endswith("/plan.json") and key.replace("/plan.json", "/run.json") not in keys
    )
    plans = [Plan(**json.loads(store.get(key))) for key in unfinished]
    return [plan for plan in plans if plan.model_id == model_id]


def read_shard(store: Store, run_id: str, shard: int) -> pa.Table:
    """The rows of one shard, as contracts.PLAN."""
    number = shard // SHARDS_PER_FILE
    metadata = pq.read_metadata(pa.BufferReader(_kept_file(store, run_id, number)))
    column = metadata.schema.names.index("shard")
    for group in range(metadata.num_row_groups):
        shards = metadata.row_group(group).column(column).statistics
        if shards.min <= shard <= shards.max:
            rows = _kept_rows(store, run_id, number, group)
            return rows.filter(pc.equal(rows["shard"], shard))
    raise InputError(f"{store.uri(_plan_file(run_id, number))} has no shard {shard}")


# Shards are handed out in order, so a process asks for the same file up to SHARDS_PER_FILE times.
@lru_cache(maxsize=2)
def _kept_file(store: Store, run_id: str, number: int) -> bytes:
    return store.get(_plan_file(run_id, number))


@lru_cache(maxsize=2)
def _kept_rows(store: Store, run_id: str, number: int, group: int) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(_kept_file(store, run_id, number))).read_row_group(group)


class _Writer:
    """Cuts sorted stale scans into shards and writes them; holds only a few files in memory at a time."""

    def __init__(self, store: Store, run_id: str, shard_size: int) -> None:
        self.store = store
        self.run_id = run_id
        self.shard_size = shard_size
        self.rows = 0
        self.bytes = 0
        self.given_up = 0
        self.digest = blake2b(digest_size=16)

    def write(self, reader: pa.RecordBatchReader) -> None:
        """Write all that the reader yields: columns LISTED and `given_up`, ordered by uri and scan_id."""
        pending: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(WRITE_THREADS) as threads:
            for number, groups in enumerate(self._files(self._planned(reader))):
                pending.append(threads.submit(self._put, number, groups))
                if len(pending) > WRITE_THREADS:
                    self.digest.update(pending.popleft().result())
            for future in pending:
                self.digest.update(future.result())

    def _planned(self, reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
        """The rows to plan, each scan once."""
        last = None
        for batch in reader:
            ids = batch["scan_id"]
            if not len(ids):
                continue
            # Rows are sorted, so duplicates of a scan in a catalogue are adjacent.
            before = pa.concat_arrays([pa.array([last], ids.type), ids.slice(0, len(ids) - 1)])
            first = pc.fill_null(pc.not_equal(ids, before), True)
            last = ids[-1].as_py()
            rows = pa.Table.from_batches([batch]).filter(first)
            self.given_up += pc.sum(rows["given_up"]).as_py() or 0
            rows = rows.filter(pc.invert(rows["given_up"])).select(LISTED)
            self.bytes += pc.sum(rows["size"]).as_py() or 0
            yield rows

    def _files(self, tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
        """The rows of each plan file, in row groups of whole shards."""
        groups: list[pa.Table] = []
        for rows in _groups(tables, self.shard_size * _shards_per_group(self.shard_size)):
            shards = np.arange(self.rows, self.rows + rows.num_rows) // self.shard_size
            planned = rows.append_column(PLAN.field("supersedes"), pa.array([False] * rows.num_rows))
            groups.append(planned.append_column(PLAN.field("shard"), pa.array(shards, pa.int32())).cast(PLAN))
            self.rows += rows.num_rows
            if len(groups) * _shards_per_group(self.shard_size) == SHARDS_PER_FILE:
                yield groups
                groups = []
        if groups:
            yield groups

    def _put(self, number: int, groups: list[pa.Table]) -> bytes:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, PLAN) as writer:
            for rows in groups:
                writer.write_table(rows, row_group_size=rows.num_rows)
        data = bytes(sink.getvalue().to_pybytes())
        self.store.put(_plan_file(self.run_id, number), data)
        return data


def _shards_per_group(shard_size: int) -> int:
    """Shards per row group, a divisor of SHARDS_PER_FILE: about ROWS_PER_GROUP rows, at least one shard."""
    wanted = max(1, ROWS_PER_GROUP // shard_size)
    return max(n for n in range(1, SHARDS_PER_FILE + 1) if SHARDS_PER_FILE % n == 0 and n <= wanted)


def _groups(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` rows, except the last."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count < rows:
            continue
        whole = pa.concat_tables(waiting)
        for start in range(0, count - rows + 1, rows):
            yield whole.slice(start, rows)
        waiting = [whole.slice(count - count % rows)]
        count %= rows
    if count:
        yield pa.concat_tables(waiting)


def _plan_file(run_id: str, number: int) -> str:
    return f"runs/{run_id}/plan/{number:05d}.parquet"
