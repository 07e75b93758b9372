"""What has changed since a model's last run: the listing of a source against the table of scores, joined by URI.

One full outer join in DuckDB. Its build side is `known`, 26 bytes per file that this model has rows of; the listing is
streamed past it, so neither is ever a Python object per scan, and what outgrows the memory it may have spills into a
temporary folder. It tells apart

    new          the model has no row of this file, or only rows from before it left the archive
    changed      it has, of another version of the file
    again        it failed in fewer than `max_nights` runs, or its reason is one that is to be tried again
    given up     it failed in too many runs, and its reason is not to be tried again
    done         this version has a final row: nothing to do
    gone         it has rows, but the file is no longer listed

`known` holds the newest final row of each file. Only a file with a row that supersedes another, or with a tombstone,
can have several rows of one model; these few are grouped, and all the others are taken as they are.
`tests/benchmarks/test_plan_scale.py` has the figures.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb

from pipelines.contracts import PART, Status
from pipelines.decoding.version import DECODER_VERSION
from pipelines.scoring.sources import LISTED, STREAMED, Source
from pipelines.stop import Stop, never
from pipelines.storage import Store
from pipelines.table.bounded import bounded_connection
from pipelines.table.delta import open_table
from pipelines.table.parts import fetch_parts, refuse_damaged
from pipelines.table.query import create_scores_view

LEAST_MEMORY: Final = 768
MOST_MEMORY: Final = 2_304
"""MiB that DuckDB may hold before it spills; the process needs up to 700 more for the rows streaming through, and 8
bytes a row of a catalogue."""
BYTES_PER_ROW: Final = 64
"""What the join takes of memory for a row of the table. What does not fit is written to disk with the rows of the
listing it may belong to: thirty million rows took 112 s in 768 MiB and 68 s in 2,304."""
THREADS: Final = 4
BATCH_ROWS: Final = 65_536

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
_SCAN: Final = "hash(scan_id)"  # 8 bytes: it is only compared with that of the same file

_ROWS: Final = f"""
    CREATE VIEW {{name}} AS SELECT {_KEY} AS key, {_SCAN} AS scan, status, run_id, plan_version,
        (plan_version, run_id, scan_id) AS place,
        CASE WHEN status NOT IN ('{Status.FAILED}', '{Status.REMOVED}') THEN {_SCAN} END AS final,
        coalesce(list_contains(getvariable('again'), reason), false) AS named,
        named AND decoder_version <> '{DECODER_VERSION}' AS retry,
        coalesce(starts_with(uri, getvariable('below')), false)
            AND coalesce(scored_at < getvariable('listed_at'), true) AS below
    FROM {{scores}}
"""  # noqa: S608 (constants)
"""What counts of each row, as a view; `place` orders the rows of a file."""

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
            bounded_connection("plan", memory=memory_for(rows), threads=THREADS) as connection,
            stop.calling(connection.interrupt),
        ):
            connection.execute("SET preserve_insertion_order = false")
            create_scores_view(connection, files)
            _load_known(connection, source, again)
            _compare(connection, source, max_nights)
            if not source.rows:
                raise source.nothing()
            changes = _count(connection, source, allow_removals, table.version if table else 0)
            return use(connection, changes)
    except duckdb.Error as error:
        stop.check()
        if source.error:
            raise source.error from None
        refuse_damaged(files, PART.names, error)
        raise


def memory_for(rows: int) -> str:
    """What DuckDB may hold while a listing is compared with so many rows."""
    return f"{min(MOST_MEMORY, max(LEAST_MEMORY, BYTES_PER_ROW * rows // 2**20))}MiB"


def _load_known(connection: duckdb.DuckDBPyConnection, source: Source, again: Collection[str]) -> None:
    """Create `known`, a row per file of this model, and `failing`, a row per version of a file that failed."""
    connection.execute("SET VARIABLE again = ?::VARCHAR[]", [list(again)])
    connection.execute("SET VARIABLE below = ?::VARCHAR", [source.archive and f"{source.archive}/"])
    connection.execute("SET VARIABLE listed_at = ?::TIMESTAMPTZ", [source.listed_at])
    # Two plain conditions, of which DuckDB reads the few URIs; with one condition of both it would read them all.
    several = f"FROM scores WHERE supersedes UNION ALL FROM scores WHERE status = '{Status.REMOVED}'"
    connection.execute(f"CREATE TABLE several AS SELECT DISTINCT hash(uri) AS short FROM ({several})")  # noqa: S608
    connection.execute("CREATE VIEW single AS SELECT * FROM scores ANTI JOIN several ON hash(uri) = short")
    connection.execute("CREATE VIEW repeated AS SELECT * FROM scores SEMI JOIN several ON hash(uri) = short")
    for name, source_of in (("rows", "scores"), ("single_rows", "single"), ("repeated_rows", "repeated")):
        connection.execute(_ROWS.format(name=name, scores=source_of))
    connection.execute(
        f"""
        CREATE TABLE tombs AS SELECT key, max(plan_version) AS version FROM rows
            WHERE status = '{Status.REMOVED}' GROUP BY key;
        CREATE TABLE failing AS SELECT key, scan, count(DISTINCT run_id) AS nights, bool_or(named) AS named
            FROM rows LEFT JOIN tombs USING (key)
            WHERE status = '{Status.FAILED}' AND coalesce(plan_version > version, true) GROUP BY key, scan;
        CREATE TABLE known AS
            SELECT key, final, retry, below, false AS buried FROM single_rows;
        INSERT INTO known
            SELECT key, arg_max(final, place) FILTER (counts), coalesce(arg_max(retry, place) FILTER (counts), false),
                bool_and(below), NOT bool_or(alive)
            FROM (
                SELECT rows.*, coalesce(plan_version > version, true) AS alive, alive AND final IS NOT NULL AS counts
                FROM repeated_rows AS rows LEFT JOIN tombs USING (key)
            ) GROUP BY key
        """  # noqa: S608 (constants)
    )


def _compare(connection: duckdb.DuckDBPyConnection, source: Source, max_nights: int) -> None:
    """Create `found`: the listed files with anything to do, and those that are gone, by `key` and `outcome`."""
    source.register(connection)
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
    connection.unregister("listing")


def _count(connection: duckdb.DuckDBPyConnection, source: Source, allow_removals: bool, table_version: int) -> Changes:
    """Count what was found, each file once, and create `gone`, the keys of the files to bury."""
    listed = source.distinct(connection)
    if listed < source.rows:
        connection.execute("CREATE OR REPLACE TABLE found AS SELECT DISTINCT ON (key) * FROM found")
    rows = connection.execute(
        "SELECT outcome, given_up, count(*), coalesce(sum(size), 0), epoch_us(min(modified)) FROM found GROUP BY ALL"
    ).fetchall()
    files = {(outcome, given_up): count for outcome, given_up, count, *_ in rows}
    planned = [(size, modified) for outcome, given_up, _, size, modified in rows if outcome != "gone" and not given_up]
    gone = files.get(("gone", False), 0)
    [(known,)] = connection.execute("SELECT count(*) FROM known WHERE below AND NOT buried").fetchall()
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
