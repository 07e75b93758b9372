"""The plan of a run: the files that this model has to score (`changes.py` finds them), cut into shards.

A plan is written whole before work starts and never changes:

    runs/<run_id>/plan/00000.parquet   up to SHARDS_PER_FILE shards, rows of contracts.PLAN
    runs/<run_id>/plan.json            written last; a plan without it does not exist

Files are numbered and written as a stream, so ten million planned rows are never in memory at once. Shards grow with
the plan: many enough to keep the cores of a large cluster busy to the end, large enough that a table of a hundred
million rows is not one of half a million files.
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from secrets import token_hex
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts import PLAN
from pipelines.errors import InputError, RayscanError
from pipelines.ingest.filters import Filters
from pipelines.scoring.batches import in_groups
from pipelines.scoring.changes import BATCH_ROWS, GONE, PLANNED, Changes, with_changes
from pipelines.scoring.removals import removal_parts, write_removals
from pipelines.scoring.sources import open_source
from pipelines.stop import Stop
from pipelines.storage import Store, open_store
from pipelines.table.delta import Part
from pipelines.table.presence import unfinished_runs

SHARDS_PER_FILE = 64
ROWS_PER_GROUP = 16_384
WRITE_THREADS = 4
READ_THREADS = 16
SMALLEST_SHARD = 64
USUAL_SHARD = 256
LARGEST_SHARD = 8_192
FEW_SHARDS = 32
"""Shards smaller than usual are doubled until there are no more than this many: a small night is shared by more actors,
and its first part is there sooner."""
SHARDS = 1_280
"""A larger shard is doubled until there are no more than this many, or it is as large as it may be."""


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
    """Files listed but not planned, because they failed in too many runs."""
    removed: int = 0
    """Files no longer listed, for which this run writes a tombstone."""
    again: int = 0
    """Planned files that an earlier run tried: they failed, or another decoder may read them."""
    oldest: str | None = None
    """When the planned file that was modified first was, ISO 8601, UTC; None where the source does not tell."""
    table_version: int = 0
    """Version of the table it was planned from."""
    lease_generation: int = 0
    """Number of the lease it was planned under."""
    ignored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What of the archive was not listed: kind of `pipelines/ingest/ignored.py` -> how many, and an example."""


def make_plan(
    store: Store,
    *,
    source: str,
    bundle: str,
    model_id: str,
    operating_point: str,
    shard_size: int | None = None,
    largest_shard: int = LARGEST_SHARD,
    max_nights: int = 5,
    again: Collection[str] = (),
    names_uris: bool = False,
    allow_removals: bool = False,
    filters: Filters | None = None,
    stop: Stop | None = None,
    confirm: Callable[[], int] = lambda: 0,
) -> Plan:
    """Plan a new run and write it; a file that failed in `max_nights` runs is given up. `stop` ends it without a plan.

    `shard_size` None: it grows with the plan, up to `largest_shard`. `names_uris`: the source is a file of URIs;
    `filters`: what of an archive is listed.
    `again`, `allow_removals`: see `with_changes`. `confirm` is called once the plan is made, before plan.json makes it
    valid: it gives the generation of the lease, or raises what this raises then, and no plan is left.
    Raises `NotFoundError` if the source is absent, `InputError` if it is empty or a part of the table is unreadable.
    """
    now = datetime.now(UTC)
    listed = open_source(source, names_uris=names_uris, stop=stop, filters=filters)

    def write(connection: duckdb.DuckDBPyConnection, changes: Changes) -> Plan:
        run_id = f"{now:%Y%m%dT%H%M%SZ}-{token_hex(3)}"
        size = shard_size or grown_shard(changes.planned, largest_shard)
        written = _Writer(store, run_id, size)
        written.write(connection.sql(PLANNED).to_arrow_reader(BATCH_ROWS))
        plan = Plan(
            run_id=run_id,
            model_id=model_id,
            bundle=open_store(bundle).root,
            operating_point=operating_point,
            source=listed.uri,
            date=f"{now:%Y-%m-%d}",
            planned=written.rows,
            listed=changes.listed,
            shards=-(-written.rows // size),
            bytes=changes.bytes,
            plan_hash=written.digest.hexdigest(),
            created=now.isoformat(),
            given_up=changes.given_up,
            again=changes.again,
            oldest=changes.oldest.isoformat() if changes.oldest else None,
            removed=changes.removed,
            table_version=changes.table_version,
            ignored=changes.ignored,
        )
        if plan.removed:
            write_removals(
                store,
                connection.sql(GONE).to_arrow_reader(BATCH_ROWS),
                run_id=run_id,
                model_id=model_id,
                day=plan.date,
                table_version=plan.table_version,
            )
        return plan

    plan = with_changes(
        store,
        source=listed,
        model_id=model_id,
        max_nights=max_nights,
        again=again,
        allow_removals=allow_removals,
        use=write,
        stop=stop,
    )
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


def grown_shard(planned: int, largest: int = LARGEST_SHARD) -> int:
    """Scans of one shard in a plan of so many: a power of two from SMALLEST_SHARD on, at most `largest` scans."""
    size = min(SMALLEST_SHARD, largest)
    while 2 * size <= min(largest, LARGEST_SHARD) and planned > size * (FEW_SHARDS if size < USUAL_SHARD else SHARDS):
        size *= 2
    return size


def forget_plan(store: Store, plan: Plan) -> None:
    """Remove a plan on which nobody has begun to work; plan.json first, so that no half of one is ever a plan."""
    store.delete(f"runs/{plan.run_id}/plan.json")
    removals = [part.key for part in tombstones(store, plan)]
    store.delete_all([*removals, *(info.key for chunk in store.list(f"runs/{plan.run_id}") for info in chunk)])


def tombstones(store: Store, plan: Plan) -> list[Part]:
    """The parts with the tombstones of a run, written with its plan, to be committed with its first shards."""
    return removal_parts(store, run_id=plan.run_id, model_id=plan.model_id, day=plan.date, removed=plan.removed)


def unfinished_plans(store: Store, model_id: str) -> list[Plan]:
    """Plans of this model without a run record, oldest first: a run that was killed is resumed under its own plan."""
    if store.is_local and not store.path.is_dir():
        return []
    unfinished = unfinished_runs(info.key for chunk in store.list("runs") for info in chunk)
    plans = [Plan(**json.loads(store.get(f"runs/{run_id}/plan.json"))) for run_id in unfinished]
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


def read_scan_ids(store: Store, run_id: str, first: int) -> list[pa.ChunkedArray]:
    """The scan_ids of up to SHARDS_PER_FILE shards, shard by shard, from `first` on, the first shard of a plan file."""
    data = store.get(_plan_file(run_id, first // SHARDS_PER_FILE))
    rows = pq.read_table(pa.BufferReader(data), columns=["scan_id", "shard"])
    ends = [*(np.flatnonzero(np.diff(rows["shard"].to_numpy())) + 1), rows.num_rows]
    return [rows["scan_id"][start:end] for start, end in pairwise([0, *ends])]


# Shards are handed out in order, so a process asks for the same file up to SHARDS_PER_FILE times.
@lru_cache(maxsize=2)
def _kept_file(store: Store, run_id: str, number: int) -> bytes:
    return store.get(_plan_file(run_id, number))


@lru_cache(maxsize=2)
def _kept_rows(store: Store, run_id: str, number: int, group: int) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(_kept_file(store, run_id, number))).read_row_group(group)


class _Writer:
    """Cuts sorted files into shards and writes them; holds only a few plan files in memory at a time."""

    def __init__(self, store: Store, run_id: str, shard_size: int) -> None:
        self.store = store
        self.run_id = run_id
        self.shard_size = shard_size
        self.rows = 0
        self.digest = blake2b(digest_size=16)

    def write(self, reader: pa.RecordBatchReader) -> None:
        """Write all that the reader yields: contracts.PLAN without `shard`, ordered by uri."""
        pending: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(WRITE_THREADS) as threads:
            tables = (pa.Table.from_batches([batch]) for batch in reader)
            for number, groups in enumerate(self._files(tables)):
                pending.append(threads.submit(self._put, number, groups))
                if len(pending) > WRITE_THREADS:
                    self.digest.update(pending.popleft().result())
            for future in pending:
                self.digest.update(future.result())

    def _files(self, tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
        """The rows of each plan file, in row groups of whole shards."""
        groups: list[pa.Table] = []
        for rows in in_groups(tables, self.shard_size * _shards_per_group(self.shard_size)):
            shards = np.arange(self.rows, self.rows + rows.num_rows) // self.shard_size
            groups.append(rows.append_column(PLAN.field("shard"), pa.array(shards, pa.int32())).cast(PLAN))
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


def _plan_file(run_id: str, number: int) -> str:
    return f"runs/{run_id}/plan/{number:05d}.parquet"
