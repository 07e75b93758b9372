"""The view `latest`: of each model and file the one row that counts now.

It is the table without its superseded rows. A file can have several rows of a model only if one of them says so
(`supersedes`), or is a tombstone; so two small columns tell where to look, a hash finds the rows of these files, and a
window over a few numbers of them alone decides. The answer is a bit per row of the table. For a large table it is kept
(`marks.py`), and a night that adds parts has only the files of its own superseding rows looked up. A night leaves them
beside the table, so that nobody's first question looks. A window over all rows takes many seconds and gigabytes, each
time; `tests/benchmarks/test_query_scale.py` has the figures.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.contracts import SCORES, Status
from pipelines.storage import Store
from pipelines.table.delta import Part
from pipelines.table.marks import Bits, cache_of, keep_marks, kept_marks, part_name

HASH = "hash(uri, model_id)"

NEWEST: Final = "failed, plan_version DESC, run DESC"
"""Order of a model's rows of one file, of which a run has one: the newest that is not `failed`, else the newest."""


def create_latest(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the view `latest` over `scores_parts`, and the table `superseded`, which `find_superseded` fills."""
    connection.execute("CREATE TABLE superseded (file_index UBIGINT, bits BIT)")
    connection.execute(
        f"CREATE VIEW latest AS SELECT {', '.join(SCORES.names)} FROM scores_parts"  # noqa: S608 (constants)
        " JOIN superseded USING (file_index) WHERE get_bit(bits, file_row_number::INTEGER) = 0"
    )


def find_superseded(
    connection: duckdb.DuckDBPyConnection, store: Store, parts: Sequence[Part], *, share: bool = False
) -> None:
    """Fill the table `superseded` for these parts, in the order of `scores_parts`: from what is kept, or by looking.

    `share`: keep them beside the table, too, for the questions of other machines.
    """
    kept = kept_marks(store, parts)
    starts = np.cumsum([0, *(part.rows for part in parts)])
    marks: Bits = np.zeros(starts[-1], bool)
    by_part = [marks[start:end] for start, end in pairwise(starts)]
    new = []
    for number, part in enumerate(parts):
        if part_name(part) in kept:
            by_part[number][:] = kept[part_name(part)]
        else:
            new.append(number)
    if new and (found := _look(connection, new, len(parts))):
        marks[starts[found["file_index"]] + found["file_row_number"]] = found["superseded"]
    if new or not store.is_local:
        keep_marks(cache_of(store), parts, marks)
    if share:
        keep_marks(store, parts, marks)
    bits = [np.packbits(mark).tobytes() or b"\0" for mark in by_part]  # BIT has at least one
    connection.register("marks", _numbered(bits))
    connection.execute("INSERT INTO superseded SELECT number, blob::BIT FROM marks")
    connection.unregister("marks")


def _numbered(blobs: Sequence[bytes]) -> pa.Table:
    """A row per blob, made of buffers: `pa.array` imports pandas first, and a parameter takes five times as long."""
    numbers = np.arange(len(blobs), dtype=np.uint64)
    ends = np.cumsum([0, *map(len, blobs)], dtype=np.int32)
    data = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(blobs))]
    return pa.Table.from_arrays(
        [
            pa.Array.from_buffers(pa.uint64(), len(blobs), [None, pa.py_buffer(numbers)]),
            pa.Array.from_buffers(pa.binary(), len(blobs), data),
        ],
        names=["number", "blob"],
    )


def _look(connection: duckdb.DuckDBPyConnection, new: Sequence[int], parts: int) -> Mapping[str, Any] | None:
    """All rows of the files of which a new part has a superseding row or a tombstone: where, and whether superseded.

    None if there is no such file.
    """
    in_new = f"file_index IN ({', '.join(map(str, new))})" if len(new) < parts else "true"
    # Two plain conditions, of which DuckDB reads the few URIs; with one condition of both it would read them all.
    connection.execute(
        f"""
        CREATE TEMP TABLE several AS SELECT DISTINCT {HASH} AS file FROM (
            FROM scores_parts WHERE supersedes UNION ALL FROM scores_parts WHERE status = '{Status.REMOVED}'
        ) WHERE {in_new}
        """  # noqa: S608 (constants)
    )
    if not connection.execute("FROM several LIMIT 1").fetchall():
        return None
    # Numbers, because sorting the strings would take several times as long.
    connection.execute("CREATE TYPE run_number AS ENUM (SELECT DISTINCT run_id FROM scores_parts ORDER BY run_id)")
    connection.execute(
        f"""
        CREATE TEMP TABLE several_rows AS
            SELECT file_index, file_row_number, file, 0 AS namesake, failed, removed, again, plan_version,
                run_id::run_number AS run
            FROM (
                SELECT *, {HASH} AS file, status = '{Status.FAILED}' AS failed,
                    status = '{Status.REMOVED}' AS removed, supersedes OR removed AS again
                FROM scores_parts
            ) SEMI JOIN several USING (file)
        """  # noqa: S608 (constants)
    )
    _tell_apart(connection)
    # What was written before a file left its archive does not count when it comes back.
    return connection.sql(
        f"""
        WITH tombs AS (
            SELECT file, namesake, max(plan_version) AS version FROM several_rows WHERE removed GROUP BY ALL
        )
        SELECT file_index, file_row_number,
            buried OR row_number() OVER (PARTITION BY file, namesake ORDER BY buried, {NEWEST}) > 1 AS superseded
        FROM (
            SELECT *, coalesce(plan_version <= version, false) AS buried
            FROM several_rows LEFT JOIN tombs USING (file, namesake)
        )
        """  # noqa: S608 (constants)
    ).fetchnumpy()


def _tell_apart(connection: duckdb.DuckDBPyConnection) -> None:
    """Number the files that share a hash. They show, because each has a first row, which supersedes none."""
    connection.execute(
        "CREATE TEMP TABLE shared AS SELECT file FROM several_rows GROUP BY file HAVING count(*) FILTER (NOT again) > 1"
    )
    if not connection.execute("FROM shared LIMIT 1").fetchall():
        return
    connection.execute(
        f"""
        UPDATE several_rows SET namesake = numbered.number FROM (
            SELECT file_index, file_row_number, dense_rank() OVER (ORDER BY model_id, uri) AS number
            FROM scores_parts SEMI JOIN shared ON file = {HASH}
        ) AS numbered
        WHERE several_rows.file_index = numbered.file_index
            AND several_rows.file_row_number = numbered.file_row_number
        """  # noqa: S608 (constants)
    )
