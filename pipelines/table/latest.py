"""The view `latest`: of each model and file the one row that counts now.

It is the table without its superseded rows, which are few. A file can have several rows of a model only if one of them
says so (`supersedes`), or is a tombstone; so two small columns tell where to look, a hash of the uri finds the rows of
these files, and a window over them alone decides. For a large table the superseded rows are kept in the local cache
under the names of its parts. A window over all rows takes seconds and gigabytes, each time;
`tests/benchmarks/test_query_scale.py` has the figures.
"""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import SCORES, Status
from pipelines.storage import Store, open_store
from pipelines.table.delta import Part
from pipelines.table.parts import mirror_folder

KEPT_FROM_ROWS = 1_000_000
"""Rows of a table from which on its superseded rows are cached; in a smaller one they are found faster than read."""
KEPT_INDEXES = 4
HASH = "hash(uri)"

NEWEST: Final = "status = 'failed', plan_version DESC, run_id DESC"
"""Order of a model's rows of one file, of which a run has one: the newest that is not `failed`, else the newest."""


def create_latest(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the view `latest` over `scores_parts`, and the table `superseded`, which `find_superseded` fills."""
    connection.execute("CREATE TABLE superseded (file_index UBIGINT, file_row_number BIGINT)")
    connection.execute(
        f"CREATE VIEW latest AS SELECT {', '.join(SCORES.names)} FROM scores_parts"  # noqa: S608 (constants)
        " ANTI JOIN superseded USING (file_index, file_row_number)"
    )


def find_superseded(connection: duckdb.DuckDBPyConnection, store: Store, parts: Iterable[Part]) -> None:
    """Fill the table `superseded` for these parts, in the order of `scores_parts`: from the cache, or by looking."""
    kept = _index_file(store, parts)
    try:
        _insert(connection, pq.read_table(kept))
    except FileNotFoundError:
        _look(connection)
        [(rows,)] = connection.execute("SELECT count(*) FROM scores_parts").fetchall()
        if rows >= KEPT_FROM_ROWS:
            _keep(connection, kept)


def _look(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"""
        CREATE TEMP TABLE several AS SELECT DISTINCT model_id, {HASH} AS short FROM scores_parts
            WHERE supersedes OR status = '{Status.REMOVED}'
        """  # noqa: S608 (constants)
    )
    if not connection.execute("FROM several LIMIT 1").fetchall():
        return
    # What was written before a file left its archive does not count when it comes back.
    connection.execute(
        f"""
        WITH tombs AS (
            SELECT model_id, uri, max(plan_version) AS version FROM scores_parts
            WHERE status = '{Status.REMOVED}' GROUP BY ALL
        ), rows AS (
            SELECT file_index, file_row_number, model_id, uri, run_id, status, plan_version
            FROM scores_parts SEMI JOIN several ON several.model_id = scores_parts.model_id AND short = {HASH}
        )
        INSERT INTO superseded SELECT file_index, file_row_number FROM (
            SELECT file_index, file_row_number, coalesce(plan_version <= version, false) AS buried,
                row_number() OVER (PARTITION BY model_id, uri ORDER BY buried, {NEWEST}) AS place
            FROM rows LEFT JOIN tombs USING (model_id, uri)
        ) WHERE buried OR place > 1
        """  # noqa: S608 (constants)
    )


def _insert(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    connection.register("kept", rows)
    connection.execute("INSERT INTO superseded SELECT file_index, file_row_number FROM kept")
    connection.unregister("kept")


def _index_file(store: Store, parts: Iterable[Part]) -> Path:
    """The cache file for the superseded rows of exactly these parts, in this order."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{part.key}\n{part.size}\n".encode())
    return mirror_folder(store) / f"superseded-{digest.hexdigest()}.index"


def _keep(connection: duckdb.DuckDBPyConnection, kept: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(connection.sql("SELECT * FROM superseded").to_arrow_table(), sink)
    open_store(str(kept.parent)).put(kept.name, sink.getvalue().to_pybytes())
    older = sorted(kept.parent.glob("superseded-*.index"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in older[KEPT_INDEXES:]:
        file.unlink(missing_ok=True)
