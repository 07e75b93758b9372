"""Finds the stale scans, those of a listing that a model has not scored: a streaming anti-join in DuckDB.

The listing is streamed; the ids of finished scans are the build side of the join, 128 bits each; only stale scans are
sorted. What outgrows MEMORY spills into a temporary folder. `tests/benchmarks/test_plan_scale.py` has the figures.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from pipelines.contracts import PART, PLAN
from pipelines.errors import RayscanError
from pipelines.ingest.catalog import is_catalog, stream_catalog
from pipelines.ingest.catalog_info import no_scans
from pipelines.ingest.listing import list_archive
from pipelines.stop import Stop, never
from pipelines.storage import Store, open_store
from pipelines.table.bounded import bounded_connection
from pipelines.table.delta import open_table
from pipelines.table.parts import fetch_parts, refuse_damaged
from pipelines.table.query import create_scores_view

MEMORY = "768MiB"
"""Memory of DuckDB before it spills; the process needs at most as much again for the rows streaming through."""
THREADS = 4
BATCH_ROWS = 65_536
LISTED = [name for name in PLAN.names if name not in {"supersedes", "shard"}]

_KEY = "md5_number(scan_id)"  # 16 bytes instead of 32 and their overhead; as many bits as a scan_id has

STALE = f"""
    SELECT {", ".join(LISTED)}, tired.key IS NOT NULL AS given_up
    FROM (SELECT *, {_KEY} AS key FROM listing) AS listed
    ANTI JOIN done ON listed.key = done.key
    LEFT JOIN tired ON listed.key = tired.key
"""  # noqa: S608 (constants)
"""The stale scans; those that failed in too many runs have `given_up`. A scan listed twice is there twice."""

T = TypeVar("T")


class ListedScans:
    """The scans of an archive or catalogue as a stream, columns LISTED; counts them, keeps the error that ends it."""

    def __init__(self, source: str, stop: Stop) -> None:
        self.source = source
        self.stop = stop
        self.is_catalog = is_catalog(source)
        self.rows = 0
        self.error: RayscanError | None = None

    def reader(self) -> pa.RecordBatchReader:
        """The listing from its start."""
        self.rows, self.error = 0, None
        schema = pa.schema([PLAN.field(name) for name in LISTED])
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for table in self._tables():
                self.stop.check()
                self.rows += table.num_rows
                yield from table.cast(schema).to_batches()
        except RayscanError as error:  # DuckDB keeps only the text of an error
            self.error = error
            raise

    def _tables(self) -> Iterable[pa.Table]:
        if self.is_catalog:
            return stream_catalog(self.source, columns=LISTED)
        return (table.select(LISTED) for table in list_archive(open_store(self.source), self.stop))

    def distinct(self, connection: duckdb.DuckDBPyConnection) -> int:
        """The number of distinct scans, after the stream has ended; a catalogue may name a scan twice."""
        if not self.is_catalog:
            return self.rows
        tables = stream_catalog(self.source, columns=["scan_id"])
        batches = (batch for table in tables for batch in table.to_batches())
        connection.register("ids", pa.RecordBatchReader.from_batches(pa.schema([("scan_id", pa.string())]), batches))
        [(count,)] = connection.execute(f"SELECT count(DISTINCT {_KEY}) FROM ids").fetchall()  # noqa: S608 (constant)
        return int(count)


def with_stale(
    store: Store,
    *,
    source: str,
    model_id: str,
    max_nights: int,
    use: Callable[[duckdb.DuckDBPyConnection, ListedScans], T],
    stop: Stop | None = None,
) -> T:
    """The result of `use`, called with a connection in which the query `STALE` can be run once.

    Raises `InputError` for an unreadable part or an empty
    listing, and what the listing raises.
    """
    stop = stop or never()
    listing = ListedScans(source, stop)
    files: list[Path] = []
    try:
        files = _files(store, model_id)
        with (
            bounded_connection("plan", memory=MEMORY, threads=THREADS) as connection,
            stop.calling(connection.interrupt),
        ):
            connection.execute("SET preserve_insertion_order = false")
            _load_done(connection, files, max_nights)
            connection.register("listing", listing.reader())
            result = use(connection, listing)
    except duckdb.Error as error:
        stop.check()
        if listing.error:
            raise listing.error from None
        refuse_damaged(files, PART.names, error)
        raise
    if not listing.rows:
        # An S3 prefix with a typo lists nothing either, and must not pass for a night without new scans.
        raise no_scans(open_store(source))
    return result


def _files(store: Store, model_id: str) -> list[Path]:
    table = open_table(store)
    return fetch_parts(store, table.parts(model_id)) if table else []


def _load_done(connection: duckdb.DuckDBPyConnection, parts: list[Path], max_nights: int) -> None:
    """Create the tables `done` (finished scans) and `tired` (failed in too many runs), of one column `key`."""
    create_scores_view(connection, parts)
    connection.execute(f"CREATE TABLE done AS SELECT {_KEY} AS key FROM scores WHERE status <> 'failed'")  # noqa: S608
    connection.execute(
        f"CREATE TABLE tired AS SELECT {_KEY} AS key FROM scores WHERE status = 'failed'"  # noqa: S608 (constant)
        " GROUP BY ALL HAVING count(DISTINCT run_id) >= ?",
        [max_nights],
    )
