"""SQL over the scores with DuckDB, wherever they are stored.

Views:

    scores      every row of every run; `date` is the day its run began
    latest      one row per model and uri: the newest that is not `failed`, else the newest; no file that was removed
    rejects     the rows of `latest` that were not scored, and why
    agreement   one row per scan and pair of models that both scored it
    runs        one row per run, from its run.json; a run without one is `unfinished`
    drift       one row per run, site and quantity, if the run measured drift
    models      one row per promotion or rollback, with the time during which it held
    production  the rows of `latest` of the model that is in production

`latest.py` says how the rows of `latest` are found. A question that is wrong is refused before any part is read.
"""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from pipelines.contracts import PART, SCORES
from pipelines.errors import InputError, StorageError
from pipelines.storage import Store, open_store
from pipelines.table.delta import ScoresTable, open_table
from pipelines.table.guarded import Bounds, guarded_connection
from pipelines.table.latest import create_latest, find_superseded
from pipelines.table.marks import is_large
from pipelines.table.parts import fetch_parts, refuse_damaged
from pipelines.table.presence import is_scores, no_run
from pipelines.table.question import require_select, told_in_a_line, whole_answer
from pipelines.table.registry import read_entries
from pipelines.table.views import IN_PRODUCTION, VIEWS, create_record_tables, run_records

__all__ = [
    "ask",
    "create_scores_view",
    "fetch_rows",
    "is_scores",
    "open_scores",
    "read_scores",
    "share_latest",
]

APART = {"scores", "scores_parts", "runs", "drift", "models"}
"""Views that do without the rows of `latest`."""

T = TypeVar("T")


def open_scores(uri: str, as_of: int | datetime | None = None) -> duckdb.DuckDBPyConnection:
    """A guarded connection with the views above. Raises `InputError` if nothing was ever scored there."""
    return _open(open_store(uri), as_of=as_of)[0]


def read_scores(
    uri: str,
    question: Callable[[duckdb.DuckDBPyConnection], T],
    *,
    bounds: Bounds | None = None,
    as_of: int | datetime | None = None,
    sql: str | None = None,
) -> T:
    """The result of `question`, called with the views at a URI; of an earlier version of the scores with `as_of`.

    `sql`: the one statement that `question` runs, if it runs one. It is checked before any part is read, and `latest`
    is filled only if it needs it.
    Raises `InputError` if nothing was ever scored there or a part is unreadable, `StorageError` if parts were removed
    meanwhile, and what the question raises.
    """
    connection, files = _open(open_store(uri), bounds, as_of, sql)
    with connection:
        try:
            return question(connection)
        except duckdb.Error as error:
            _explain(files, error)
            raise


def share_latest(uri: str) -> None:
    """Find the superseded rows of a large table now and keep them beside it, so that nobody's first question has to.

    Raises `InputError` if a part is unreadable, `StorageError` if the store fails.
    """
    store = open_store(uri)
    table = open_table(store)
    if table and is_large(table.parts()):
        connection, _ = _open(store, share=True)
        connection.close()


def fetch_rows(connection: duckdb.DuckDBPyConnection, sql: str, *params: Any) -> list[dict[str, Any]]:
    """A small result as one dict per row; `params` fill the placeholders of `sql`."""
    rows: list[dict[str, Any]] = connection.sql(sql, params=list(params)).to_arrow_table().to_pylist()
    return rows


SUMMARY = f"""
    SELECT model_id, status, coalesce(reason, '') AS reason, count(*) AS scans,
           count(*) FILTER (WHERE prediction = 'PNEUMONIA') AS positive
    FROM latest WHERE model_id = coalesce({IN_PRODUCTION}, model_id)
    GROUP BY ALL ORDER BY model_id, scans DESC, status, reason
"""  # noqa: S608 (constants)
"""The query that `ask` runs if it is given none: of the model in production, or of all where none is."""


def ask(
    uri: str, sql: str | None = None, *, bounds: Bounds | None = None, as_of: int | datetime | None = None
) -> pa.Table:
    """The result of one SELECT on the scores at a URI, as they are or were.

    Raises `InputError` for what is refused or exceeds `bounds`, and for a version that cannot be read.
    """
    bounds, question = bounds or Bounds(), sql or SUMMARY
    require_select(question)
    with told_in_a_line(bounds):
        return read_scores(
            uri,
            lambda connection: whole_answer(connection, question, bounds),
            bounds=bounds,
            as_of=as_of,
            sql=question,
        )


def create_scores_view(connection: duckdb.DuckDBPyConnection, files: list[Path]) -> None:
    """Create the view `scores` over these parts; empty without parts. Raises `InputError` for an unreadable part.

    Also creates `scores_parts`, in which each row also has `file_index`, the position of its part in `files`, and
    `file_row_number`.
    """
    columns = ", ".join(SCORES.names)
    if not files:
        connection.register("no_scores", SCORES.empty_table())
        nowhere = "0::UBIGINT AS file_index, 0::BIGINT AS file_row_number"
        connection.execute(f"CREATE VIEW scores_parts AS SELECT {columns}, {nowhere} FROM no_scores")  # noqa: S608
    else:
        names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
        # Not DuckDB's own hive partitioning: it would read a folder above the scores, such as site=north, as a column.
        folders = "model_id=([^/]*)/date=([^/]*)/[^/]*$"
        model = f"regexp_extract(filename, '{folders}', 1) AS model_id"
        day = f"regexp_extract(filename, '{folders}', 2)::DATE AS date"
        selected = f"{', '.join(PART.names)}, {model}, {day}, file_index, file_row_number"
        parquet = f"read_parquet([{names}], hive_partitioning = false, filename = true)"
        try:
            connection.execute(f"CREATE VIEW scores_parts AS SELECT {selected} FROM {parquet}")  # noqa: S608 (quoted)
        except duckdb.Error as error:
            _explain(files, error)
            raise
    connection.execute(f"CREATE VIEW scores AS SELECT {columns} FROM scores_parts")  # noqa: S608 (constants)


def _open(
    store: Store,
    bounds: Bounds | None = None,
    as_of: int | datetime | None = None,
    sql: str | None = None,
    *,
    share: bool = False,
) -> tuple[duckdb.DuckDBPyConnection, list[Path]]:
    records = run_records(store, (info.key for chunk in store.list("runs") for info in chunk))
    if not records:
        raise no_run(store)
    table = open_table(store)
    if table and as_of is not None:
        table = table.at(as_of)
    parts = table.parts() if table else []
    files = fetch_parts(store, parts) if table is None or as_of is None else _fetch_old(table)
    connection = guarded_connection(files, bounds)
    create_scores_view(connection, files)
    create_latest(connection)
    create_record_tables(connection, records, read_entries(store))
    for name, view in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {view}")
    try:
        if sql is not None:
            connection.execute(f"EXPLAIN {sql}")
        if sql is None or _needs_latest(connection, sql):
            find_superseded(connection, store, parts, share=share)
    except duckdb.Error as error:
        _explain(files, error)
        raise
    return connection, files


def _fetch_old(table: ScoresTable) -> list[Path]:
    """The parts of an earlier version; some may be gone for good."""
    gone = InputError(
        f"{table.store.root}: version {table.version} can no longer be read, because a compaction or an erasure has"
        " removed files of it; choose a later one: rayscan history SCORES"
    )
    try:
        files = fetch_parts(table.store, table.parts())
    except StorageError as error:
        raise gone from error
    if not all(file.exists() for file in files):
        raise gone
    return files


def _needs_latest(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    views = {
        name for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    }
    return re.search(rf"\b({'|'.join(views - APART)})\b", sql, re.IGNORECASE) is not None


def _explain(files: Iterable[Path], error: duckdb.Error) -> None:
    """Raise `StorageError` if a part has vanished, `InputError` if one is damaged and can be the cause of the error."""
    for file in files:
        if not file.exists():
            raise StorageError(f"{file} has left the scores while they were read; ask again") from error
    if isinstance(error, duckdb.ConversionException):  # the question compares a column with what is no value of it
        return
    if isinstance(
        error, duckdb.IOException | duckdb.InvalidInputException | duckdb.DataError | duckdb.InternalException
    ):
        refuse_damaged(files, PART.names, error)
