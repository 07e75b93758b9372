"""Merges the many small parts of a model's day into few large ones, and deletes what nobody reads any more.

Engines open each part of a table, so thousands of small ones cost more than their rows: 6,000 parts of 256 rows took
DuckDB 8.5 s. A merge is one version of the table: the merged part comes in, ordered by uri, and the small ones go.
Readers of an older version keep its parts for KEEP. Only parts of finished runs are merged, since an unfinished
one still looks for its own; a part with more than half of ROWS rows is left as it is.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from secrets import token_hex
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART
from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from pipelines.table.bounded import bounded_connection
from pipelines.table.delta import MERGED, Part, ScoresTable, open_table, part_folder
from pipelines.table.lease import lease_of_scores
from pipelines.table.parts import fetch_parts, refuse_damaged
from pipelines.table.presence import check_models, require_any, unfinished_runs
from pipelines.table.query import create_scores_view, share_latest

ROWS: Final = 1_000_000
"""Most rows of a merged part."""
ROWS_PER_GROUP: Final = 122_880
KEEP: Final = timedelta(days=7)
"""Files that left the table are kept so long, for readers and for `query --as-of`."""
MANY_PARTS: Final = 32
"""Small parts of a day from which on a night compacts them itself."""
MEMORY: Final = "1GiB"
THREADS: Final = 4


@dataclass(frozen=True, kw_only=True)
class CompactedDay:
    """What a compaction did to the parts of one model and day."""

    model_id: str
    date: date
    parts_before: int
    parts_after: int
    rows: int
    """Rows rewritten."""


def compact(uri: str, *, model: str | None = None, wait: float = 0.0, keep: timedelta = KEEP) -> list[CompactedDay]:
    """Compact the scores at a URI, of all models or one; returns the days in which anything changed.

    Holds each model's lease meanwhile, so that no run adds parts; waits up to `wait` seconds for a run at work. Raises
    `IncompleteError` if it is still at work then, `InputError` for an unreadable part or if nothing was ever scored.
    """
    store = open_store(uri)
    table = open_table(store)
    if table is None:
        require_any(store)
    models = {part.model_id for part in table.parts()} if table else set()
    check_models(store, models, model)
    conditional = store.has_conditional_put()
    days: list[CompactedDay] = []
    for name in sorted(models) if model is None else [model]:
        with lease_of_scores(store, name, conditional=conditional, wait=wait):
            now = open_table(store, conditional=conditional)
            assert now
            days += compact_model(now, name)
    remove_unused(store, keep)
    if days:
        share_latest(store.root)
    return days


def compact_model(table: ScoresTable, model_id: str, *, fewest: int = 2) -> list[CompactedDay]:
    """Merge the small parts of each day of a model that has at least `fewest` of them; its lease is held."""
    # they may still look for their parts by name
    unfinished = set(unfinished_runs(info.key for chunk in table.store.list("runs") for info in chunk))
    by_day = defaultdict(list)
    for part in table.parts(model_id):
        by_day[part.date].append(part)
    days = []
    for day, parts in sorted(by_day.items()):
        small = [part for part in parts if part.rows <= ROWS // 2 and part.run_id not in unfinished]
        if len(small) >= fewest:
            merged = _merge(table, small)
            days.append(
                CompactedDay(
                    model_id=model_id,
                    date=day,
                    parts_before=len(parts),
                    parts_after=len(parts) - len(small) + len(merged),
                    rows=sum(part.rows for part in merged),
                )
            )
    return days


def remove_unused(store: Store, keep: timedelta = KEEP) -> int:
    """Delete files that left the table, or never came into it, longer ago than this; returns how many."""
    table = open_table(store)
    keys = table.unused(keep) if table else []
    store.delete_all(keys)
    return len(keys)


def _merge(table: ScoresTable, parts: list[Part]) -> list[Part]:
    """Put these parts, all of one model and day, into merged ones of at most ROWS rows, in one version of the table."""
    merged = [put_merged(table.store, parts[0], rows) for rows in _sorted(table.store, parts)]
    read, expected = sum(part.rows for part in merged), sum(part.rows for part in parts)
    if read != expected:
        raise InputError(
            f"{table.store.uri(part_folder(parts[0].model_id, f'{parts[0].date}'))}: {read} of {expected} rows were"
            " read; restore its parts from a copy"
        )
    runs = {part.run_id for part in parts} - {""}
    table.replace(parts, merged, {"operation": "compact", "rows": read}, finished=runs)
    return merged


def put_merged(store: Store, like: Part, rows: pa.Table) -> Part:
    """Write rows of contracts.PART as a part of the same model and day as `like`; it is not committed."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    data = sink.getvalue().to_pybytes()
    key = f"{part_folder(like.model_id, f'{like.date}')}/{MERGED}{token_hex(8)}.parquet"
    store.put(key, data)
    return Part(key=key, size=len(data), rows=rows.num_rows, model_id=like.model_id, date=like.date)


def _sorted(store: Store, parts: list[Part]) -> Iterator[pa.Table]:
    """The rows of these parts ordered by uri, ROWS at a time."""
    files = fetch_parts(store, parts)
    with bounded_connection("compact", memory=MEMORY, threads=THREADS) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        try:
            create_scores_view(connection, files)
            query = f"SELECT {', '.join(PART.names)} FROM scores ORDER BY uri, plan_version, scan_id"  # noqa: S608
            waiting: list[pa.RecordBatch] = []
            for batch in connection.sql(query).to_arrow_reader(ROWS_PER_GROUP):
                waiting.append(batch)
                if sum(waited.num_rows for waited in waiting) + ROWS_PER_GROUP > ROWS:
                    yield pa.Table.from_batches(waiting).cast(PART)
                    waiting = []
            if waiting:
                yield pa.Table.from_batches(waiting).cast(PART)
        except duckdb.Error as error:
            refuse_damaged(files, PART.names, error)
            raise
