"""What has changed since a model's last run: the listing of a source against the table of scores, joined by URI.

Nearly all files of most nights are done. `settled.py` finds these as the listing streams by; the others are compared
in DuckDB, by one full outer join with `known`, a row for each other file that this model has rows of. Nothing is ever
a Python object per scan, and what outgrows MEMORY spills into a temporary folder. Told apart are

    new          the model has no row of this file, or only rows from before it left the archive
    changed      it has, of another version of the file
    again        it failed in fewer than `max_nights` runs, or its reason is one that is to be tried again
    given up     it failed in too many runs, and its reason is not to be tried again
    done         this version has a final row: nothing to do
    gone         it has rows, but the file is no longer listed

`known` holds the newest final row of each.
`tests/benchmarks/test_plan_scale.py` has the figures.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.contracts import PART, Status
from pipelines.decoding.version import DECODER_VERSION
from pipelines.scoring.batches import in_groups, read_ahead
from pipelines.scoring.settled import Settled
from pipelines.scoring.sources import LISTED, STREAM, STREAMED, Source
from pipelines.stop import Stop, never
from pipelines.storage import Store
from pipelines.table.bounded import bounded_connection
from pipelines.table.delta import open_table
from pipelines.table.parts import fetch_parts, refuse_damaged
from pipelines.table.query import create_scores_view

MEMORY: Final = "768MiB"
"""Memory of DuckDB before it spills. The process needs more: 1.3 GiB in all for ten million rows of the table, 3.2 for
a hundred million, each of which takes 14 bytes, and 28 while they are sorted."""
THREADS: Final = 4
BATCH_ROWS: Final = 65_536
SIFTED_ROWS: Final = 524_288
"""Rows of the listing that are looked up at a time: the more, the closer to each other they lie in the sorted rows."""

PLANNED: Final = (
    f"SELECT {', '.join(LISTED)}, supersedes FROM found WHERE outcome <> 'gone' AND NOT given_up ORDER BY uri"  # noqa: S608
)
"""The files to score, each once."""
GONE: Final = """
    SELECT scan_id, uri, etag, site, patient_key, study_date FROM scores
    SEMI JOIN gone ON md5_number(scores.uri) = gone.key
    QUALIFY row_number() OVER (PARTITION BY uri ORDER BY plan_version DESC, run_id DESC, scan_id DESC) = 1
"""
"""The newest row of each file that is gone."""

_KEY: Final = "md5_number(uri)"  # 16 bytes instead of a string of any length
_SHORT: Final = "hash(uri)"  # 8 bytes, for rows that are then looked at more closely
_SCAN: Final = "hash(scan_id)"  # 8 bytes: it is only compared with that of the same file

_COUNTS: Final = f"""
    {_KEY} AS key, {_SHORT} AS short, {_SCAN} AS scan, status, run_id, plan_version,
    (plan_version, run_id, scan_id) AS place,
    CASE WHEN status NOT IN ('{Status.FAILED}', '{Status.REMOVED}') THEN {_SCAN} END AS final,
    coalesce(list_contains(getvariable('again'), reason), false) AS named,
    named AND decoder_version <> '{DECODER_VERSION}' AS retry,
    coalesce(starts_with(uri, getvariable('below')), false)
        AND coalesce(scored_at < getvariable('listed_at'), true) AS below
"""
"""What counts of each row; `place` orders the rows of a file."""

T = TypeVar("T")
log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How many files are what; `new + changed + again` are planned."""

    listed: int
    new: int
    changed: int
    again: int
    given_up: int
    removed: int
    """Gone, and to be buried with a tombstone."""
    bytes: int
    """Size of the planned files."""
    oldest: datetime | None
    """When the planned file that was modified first was; None: none is planned."""
    table_version: int
    """Version of the table that the listing was compared with."""
    ignored: Mapping[str, Mapping[str, Any]]
    """What of the archive was not listed: kind -> how many, and an example."""

    @property
    def planned(self) -> int:
        """Files to score."""
        return self.new + self.changed + self.again


def with_changes(
    store: Store,
    *,
    source: Source,
    model_id: str,
    max_nights: int,
    use: Callable[[duckdb.DuckDBPyConnection, Changes], T],
    again: Collection[str] = (),
    allow_removals: bool = False,
    stop: Stop | None = None,
) -> T:
    """The result of `use`, called with a connection in which the queries PLANNED and GONE can be asked.

    `again`: reasons. Scans that another decoder version gave up with one of them, or that failed with one in too many
    runs, are planned again. Without `allow_removals` nothing is buried if more than half of what was known would be.
    Raises `InputError` for an unreadable part, an empty listing or a catalogue that names two versions of a file, and
    what the listing raises.
    """
    stop = stop or never()
    table = open_table(store)
    files: list[Path] = []
    try:
        parts = table.parts(model_id) if table else []
        files = fetch_parts(store, parts)
        rows = sum(part.rows for part in parts)
        with (
            bounded_connection("plan", memory=MEMORY, threads=THREADS) as connection,
            stop.calling(connection.interrupt),
        ):
            connection.execute("SET preserve_insertion_order = false")
            create_scores_view(connection, files)
            _load_failing(connection, source, again)
            settled = _load_settled(connection, rows, again)
            _load_listing(connection, source, settled)
            _compare(connection, max_nights)
            if not source.rows:
                raise source.nothing()
            changes = _count(connection, source, settled, allow_removals, table.version if table else 0)
            return use(connection, changes)
    except (duckdb.Error, OSError) as error:  # an OSError where it comes through a stream of Arrow's
        stop.check()
        if source.error:
            raise source.error from None
        refuse_damaged(files, PART.names, error)
        raise


def _load_failing(connection: duckdb.DuckDBPyConnection, source: Source, again: Collection[str]) -> None:
    """Create `tombs`, a row per file that left, and `failing`, one per version of a file that failed since it came."""
    connection.execute("SET VARIABLE again = ?::VARCHAR[]", [list(again)])
    connection.execute("SET VARIABLE below = ?::VARCHAR", [source.archive and f"{source.archive}/"])
    connection.execute("SET VARIABLE listed_at = ?::TIMESTAMPTZ", [source.listed_at])
    connection.execute(f"CREATE VIEW rows AS SELECT {_COUNTS} FROM scores")  # noqa: S608 (constants)
    connection.execute(
        f"""
        CREATE TABLE tombs AS SELECT key, short, max(plan_version) AS version FROM rows
            WHERE status = '{Status.REMOVED}' GROUP BY ALL;
        CREATE TABLE failing AS
            SELECT key, rows.short, scan, count(DISTINCT run_id) AS nights, bool_or(named) AS named
            FROM rows LEFT JOIN tombs USING (key)
            WHERE status = '{Status.FAILED}' AND coalesce(plan_version > version, true) GROUP BY key, rows.short, scan
        """  # noqa: S608 (constants)
    )


def _load_settled(connection: duckdb.DuckDBPyConnection, most: int, again: Collection[str]) -> Settled:
    """The final rows of a table of at most so many rows, where they may settle their file."""
    apart = connection.execute("SELECT short FROM tombs").fetchnumpy()["short"]
    if again:
        retried = connection.execute("SELECT DISTINCT short FROM rows WHERE retry").fetchnumpy()["short"]
        apart = np.concatenate([apart, retried])
    final = f"status <> '{Status.FAILED}' AND status <> '{Status.REMOVED}'"
    rows = connection.sql(f"SELECT {_SHORT} AS uri, {_SCAN} AS scan FROM scores WHERE {final}")  # noqa: S608 (constants)
    return Settled(rows.to_arrow_reader(BATCH_ROWS), most, apart=apart)


def _load_listing(connection: duckdb.DuckDBPyConnection, source: Source, settled: Settled) -> None:
    """Create `listing`, the files that are not settled, and `known`, a row per file that is not and that has any.

    Without any row that settles a file, as on the first night, the listing is streamed to where it is compared.
    """
    left = _not_settled(source, settled, connection.cursor())
    connection.register("stream", pa.RecordBatchReader.from_batches(STREAM, left))
    connection.execute(f"CREATE {'TABLE' if len(settled) else 'VIEW'} listing AS FROM stream")
    failed = connection.execute("SELECT DISTINCT short FROM failing").fetchnumpy()["short"]
    connection.register("unsettled", pa.table({"short": settled.unsettled(failed)}))
    # All that counts of a row is computed after the join, for the few rows that are left by it.
    connection.execute(
        f"""
        CREATE TABLE known AS
            SELECT key, arg_max(final, place) FILTER (counts) AS final,
                coalesce(arg_max(retry, place) FILTER (counts), false) AS retry,
                bool_and(below) AS below, NOT bool_or(alive) AS buried
            FROM (
                SELECT few.*, coalesce(plan_version > version, true) AS alive, alive AND final IS NOT NULL AS counts
                FROM (SELECT {_COUNTS} FROM scores SEMI JOIN unsettled ON {_SHORT} = unsettled.short) AS few
                LEFT JOIN tombs USING (key)
            ) GROUP BY key
        """  # noqa: S608 (constants)
    )


def _not_settled(source: Source, settled: Settled, beside: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """The rows of the listing that `settled` does not find; `beside` computes their hashes."""
    tables = (pa.Table.from_batches([batch]) for batch in source.batches())
    for table in read_ahead(in_groups(tables, SIFTED_ROWS)):
        hashes = beside.from_arrow(table).project(f"{_SHORT} AS uri, {_SCAN} AS scan").fetchnumpy()
        yield from table.filter(pa.array(settled.sift(hashes["uri"], hashes["scan"]))).to_batches()


def _compare(connection: duckdb.DuckDBPyConnection, max_nights: int) -> None:
    """Create `found`: the listed files with anything to do, and those that are gone, by `key` and `outcome`."""
    # DuckDB takes a stream for a single row, so it would hold the listing in memory and stream the table past it.
    connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    connection.execute(
        f"""
        CREATE TABLE found AS
        SELECT {", ".join(STREAMED)}, pair.key, supersedes, coalesce(nights >= ? AND NOT named, false) AS given_up,
            CASE
                WHEN uri IS NULL THEN 'gone'
                WHEN NOT supersedes OR buried THEN 'new'
                WHEN pair.scan = final OR nights > 0 THEN 'again'
                ELSE 'changed'
            END AS outcome
        FROM (
            SELECT listed.* EXCLUDE (key), coalesce(listed.key, known.key) AS key, known.key IS NOT NULL AS supersedes,
                final, buried
            FROM (SELECT *, {_KEY} AS key, {_SCAN} AS scan FROM listing) AS listed
            FULL OUTER JOIN known ON listed.key = known.key
            WHERE CASE
                WHEN listed.key IS NULL THEN below AND NOT buried
                WHEN known.key IS NULL THEN true
                ELSE buried OR retry OR final IS DISTINCT FROM listed.scan
            END
        ) AS pair LEFT JOIN failing ON pair.key = failing.key AND pair.scan = failing.scan
        """,  # noqa: S608 (constants)
        [max_nights],
    )
    connection.execute("RESET disabled_optimizers")
    connection.unregister("stream")


def _count(
    connection: duckdb.DuckDBPyConnection, source: Source, settled: Settled, allow_removals: bool, table_version: int
) -> Changes:
    """Count what was found, each file once, and create `gone`, the keys of the files to bury."""
    listed = source.distinct(connection) if source.is_catalog and settled.may_repeat else source.rows
    if listed < source.rows:
        connection.execute("CREATE OR REPLACE TABLE found AS SELECT DISTINCT ON (key) * FROM found")
    rows = connection.execute(
        "SELECT outcome, given_up, count(*), coalesce(sum(size), 0), epoch_us(min(modified)) FROM found GROUP BY ALL"
    ).fetchall()
    files = {(outcome, given_up): count for outcome, given_up, count, *_ in rows}
    planned = [(size, modified) for outcome, given_up, _, size, modified in rows if outcome != "gone" and not given_up]
    gone = files.get(("gone", False), 0)
    [(known,)] = connection.execute("SELECT count(*) FROM known WHERE below AND NOT buried").fetchall()
    known += settled.done
    if 2 * gone > known and not allow_removals:
        log.warning(
            "%d of the %d files known below %s are not listed any more: because that is more than half, none is marked"
            " as removed; if they are really gone, say so with --allow-removals",
            gone,
            known,
            source.archive,
        )
        gone = 0
    if gone and source.ignored.hides_files:
        log.warning(
            "%d files known below %s are not listed any more, but parts of it could not be looked into: none is marked"
            " as removed (%s)",
            gone,
            source.archive,
            source.ignored.in_words(),
        )
        gone = 0
    connection.execute("CREATE TABLE gone AS SELECT key FROM found WHERE outcome = 'gone' AND ?", [gone > 0])
    return Changes(
        listed=listed,
        **{outcome: files.get((outcome, False), 0) for outcome in ("new", "changed", "again")},
        given_up=sum(count for (_, given_up), count in files.items() if given_up),
        removed=gone,
        bytes=sum(int(size) for size, _ in planned),
        oldest=min((datetime.fromtimestamp(modified / 1e6, UTC) for _, modified in planned), default=None),
        table_version=table_version,
        ignored=source.ignored.account(),
    )
