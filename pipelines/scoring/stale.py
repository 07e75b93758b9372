"""Which scans of a listing a model has not dealt with: one streaming anti-join in DuckDB, in bounded memory.

The listing flows past; the ids of what was dealt with are the build side, 128 bits each; only what is stale is sorted.
Whatever outgrows MEMORY spills into a temporary folder. `tests/benchmarks/test_plan_scale.py` has the figures.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from pipelines.contracts import PLAN, SCORES
from pipelines.errors import RayscanError
from pipelines.ingest.catalog import is_catalog, stream_catalog
from pipelines.ingest.catalog_info import no_scans
from pipelines.ingest.listing import list_archive
from pipelines.storage import Store, open_store
from pipelines.table.bounded import bounded_connection
from pipelines.table.parts import PartVanishedError, list_scores, local_parts, refuse_spoilt
from pipelines.table.query import create_scores_view

MEMORY = "768MiB"
"""What DuckDB may hold before it spills; the process needs as much again at most for what flows through it."""
THREADS = 4
BATCH_ROWS = 65_536
ATTEMPTS = 4
LISTED = [name for name in PLAN.names if name != "shard"]

_KEY = "md5_number(scan_id)"  # 16 bytes in place of 32 and their overhead; as many bits as a scan_id itself has

STALE = f"""
    SELECT {", ".join(LISTED)}, tired.key IS NOT NULL AS given_up
    FROM (SELECT *, {_KEY} AS key FROM listing) AS listed
    ANTI JOIN done ON listed.key = done.key
    LEFT JOIN tired ON listed.key = tired.key
"""  # noqa: S608 (constants)
"""The scans to do, with those that failed too many nights marked. A scan listed twice is there twice."""

T = TypeVar("T")


class ListedScans:
    """The scans of an archive or catalogue as they flow by, columns LISTED; counts them, keeps its own errors."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_catalog = is_catalog(source)
        self.rows = 0
        self.error: RayscanError | None = None

    def reader(self) -> pa.RecordBatchReader:
        """The listing from its beginning."""
        self.rows, self.error = 0, None
        schema = pa.schema([PLAN.field(name) for name in LISTED])
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema))

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for table in self._tables():
                self.rows += table.num_rows
                yield from table.cast(schema).to_batches()
        except RayscanError as error:  # DuckDB keeps only the text of it
            self.error = error
            raise

    def _tables(self) -> Iterable[pa.Table]:
        if self.is_catalog:
            return stream_catalog(self.source, columns=LISTED)
        return (table.select(LISTED) for table in list_archive(open_store(self.source)))

    def distinct(self, connection: duckdb.DuckDBPyConnection) -> int:
        """How many scans there are once all have flowed by; a catalogue may name one twice."""
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
) -> T:
    """What `use` makes of a connection in which `STALE` can be asked, once; called again if parts were compacted away.

    Raises `InputError` for a spoilt part or an empty listing, and whatever the listing raises.
    """
    for _ in range(ATTEMPTS):
        listing = ListedScans(source)
        parts: list[Path] = []
        try:
            parts = _parts(store, model_id)
            with bounded_connection("plan", memory=MEMORY, threads=THREADS) as connection:
                connection.execute("SET preserve_insertion_order = false")
                _load_done(connection, parts, max_nights)
                connection.register("listing", listing.reader())
                result = use(connection, listing)
        except PartVanishedError:
            continue
        except duckdb.Error as error:
            if listing.error:
                raise listing.error from None
            if not all(part.exists() for part in parts):
                continue
            refuse_spoilt(parts, SCORES.names, error)
            raise
        if not listing.rows:  # an S3 prefix with a typo lists nothing, too: that night must not pass for a quiet one
            raise no_scans(open_store(source))
        return result
    raise PartVanishedError(f"{store.root}: the parts were replaced again and again while they were read; run again")


def _parts(store: Store, model_id: str) -> list[Path]:
    if store.is_local and not store.path.is_dir():
        return []
    return local_parts(store, list_scores(store, f"scores/model={model_id}"))


def _load_done(connection: duckdb.DuckDBPyConnection, parts: list[Path], max_nights: int) -> None:
    """Make the tables `done` and `tired`, of one column `key`: dealt with, and failed in too many runs."""
    create_scores_view(connection, parts)
    connection.execute(f"CREATE TABLE done AS SELECT {_KEY} AS key FROM scores WHERE status <> 'failed'")  # noqa: S608
    connection.execute(
        f"CREATE TABLE tired AS SELECT {_KEY} AS key FROM scores WHERE status = 'failed'"  # noqa: S608 (constant)
        " GROUP BY ALL HAVING count(DISTINCT run_id) >= ?",
        [max_nights],
    )
