"""The view `latest`: of each model and file the one row that counts now.

It is the table without its superseded rows. A file can have several rows of a model only if one of them says so
(`supersedes`), or is a tombstone; so two small columns tell where to look, a hash finds the rows of these files, and a
window over a few numbers of them alone decides. The answer is a bit per row of the table. For a large table it is kept
in the local cache, by part, and a night that adds parts has only the files of its own superseding rows looked up.
A window over all rows takes many seconds and gigabytes, each time; `tests/benchmarks/test_query_scale.py` has the
figures.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import SCORES, Status
from pipelines.storage import Store, open_store
from pipelines.table.delta import Part
from pipelines.table.parts import mirror_folder

KEPT_FROM_ROWS = 1_000_000
"""Rows of a table from which on its superseded rows are cached; in a smaller one they are found faster than read."""
KEPT_INDEXES = 4
HASH = "hash(uri, model_id)"

Bits = np.ndarray[Any, np.dtype[np.bool_]]
"""(rows of a part,): whether the row is superseded."""

NEWEST: Final = "failed, plan_version DESC, run DESC"
"""Order of a model's rows of one file, of which a run has one: the newest that is not `failed`, else the newest."""


def create_latest(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the view `latest` over `scores_parts`, and the table `superseded`, which `find_superseded` fills."""
    connection.execute("CREATE TABLE superseded (file_index UBIGINT, bits BIT)")
    connection.execute(
        f"CREATE VIEW latest AS SELECT {', '.join(SCORES.names)} FROM scores_parts"  # noqa: S608 (constants)
        " JOIN superseded USING (file_index) WHERE get_bit(bits, file_row_number::INTEGER) = 0"
    )


def find_superseded(connection: duckdb.DuckDBPyConnection, store: Store, parts: Sequence[Part]) -> None:
    """Fill the table `superseded` for these parts, in the order of `scores_parts`: from the cache, or by looking."""
    kept = _kept(mirror_folder(store), parts)
    marks = [kept.get(_name(part), np.zeros(part.rows, bool)) for part in parts]
    new = [number for number, part in enumerate(parts) if _name(part) not in kept]
    if new:
        _look(connection, marks, new)
        if sum(part.rows for part in parts) >= KEPT_FROM_ROWS:
            _keep(mirror_folder(store), parts, marks)
    bits = pa.array([np.packbits(mark).tobytes() or b"\0" for mark in marks], pa.binary())  # BIT has at least one
    connection.register("marks", pa.table({"file_index": pa.array(range(len(parts)), pa.uint64()), "bits": bits}))
    connection.execute("INSERT INTO superseded SELECT file_index, bits::BIT FROM marks")
    connection.unregister("marks")


def _look(connection: duckdb.DuckDBPyConnection, marks: Sequence[Bits], new: Sequence[int]) -> None:
    """Mark all rows of the files of which a new part has a superseding row or a tombstone: superseded, or not."""
    again = f"(supersedes OR status = '{Status.REMOVED}')"
    in_new = f"file_index IN ({', '.join(map(str, new))})" if len(new) < len(marks) else "true"
    connection.execute(
        f"CREATE TEMP TABLE several AS SELECT DISTINCT {HASH} AS file FROM scores_parts WHERE {again} AND {in_new}"  # noqa: S608
    )
    if not connection.execute("FROM several LIMIT 1").fetchall():
        return
    # Numbers, because sorting the strings would take several times as long.
    connection.execute("CREATE TYPE run_number AS ENUM (SELECT DISTINCT run_id FROM scores_parts ORDER BY run_id)")
    connection.execute(
        f"""
        CREATE TEMP TABLE several_rows AS
            SELECT file_index, file_row_number, file, 0 AS namesake, failed, removed, again, plan_version,
                run_id::run_number AS run
            FROM (
                SELECT *, {HASH} AS file, {again} AS again, status = '{Status.FAILED}' AS failed,
                    status = '{Status.REMOVED}' AS removed
                FROM scores_parts
            ) SEMI JOIN several USING (file)
        """  # noqa: S608 (constants)
    )
    _tell_apart(connection)
    # What was written before a file left its archive does not count when it comes back.
    found = connection.sql(
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
    by_part = np.argsort(found["file_index"], kind="stable")
    indexes, starts = np.unique(found["file_index"][by_part], return_index=True)
    for index, rows in zip(indexes, np.split(by_part, starts[1:]), strict=True):
        marks[index][found["file_row_number"][rows]] = found["superseded"][rows]


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


def _name(part: Part) -> str:
    return f"{part.key} {part.size}"


def _indexes(folder: Path) -> list[Path]:
    """The kept files, the newest first."""
    return sorted(folder.glob("superseded-*.bits"), key=lambda file: file.stat().st_mtime, reverse=True)


def _kept(folder: Path, parts: Sequence[Part]) -> Mapping[str, Bits]:
    """What is kept of a table to which nothing but parts was added since, by the names of its parts; or nothing."""
    rows = {_name(part): part.rows for part in parts}
    best: dict[str, Bits] = {}
    for file in _indexes(folder):
        table = pq.read_table(file)
        names = table["part"].to_pylist()
        if len(best) < len(names) and rows.keys() >= set(names):
            packed = zip(names, table["bits"].to_pylist(), strict=True)
            best = {name: np.unpackbits(np.frombuffer(bits, np.uint8), count=rows[name]) > 0 for name, bits in packed}
    return best


def _keep(folder: Path, parts: Sequence[Part], marks: Sequence[Bits]) -> None:
    names = [_name(part) for part in parts]
    table = pa.table({"part": names, "bits": pa.array([np.packbits(mark).tobytes() for mark in marks], pa.binary())})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    digest = blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
    open_store(str(folder)).put(f"superseded-{digest}.bits", sink.getvalue().to_pybytes())
    for file in _indexes(folder)[KEPT_INDEXES:]:
        file.unlink(missing_ok=True)
