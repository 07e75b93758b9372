"""A question in SQL: what may be asked, and its answer in pieces, so that no answer outgrows the machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import duckdb
import pyarrow as pa

from pipelines.errors import InputError
from pipelines.table.guarded import Bounds

ROWS: Final = 50_000
"""Rows of one piece of an answer."""
_NO_MEMORY: Final = "Out of Memory"


def require_select(sql: str) -> None:
    """Raise `InputError` unless this is one statement that only reads.

    FROM, VALUES, DESCRIBE, SUMMARIZE and SHOW count as SELECT.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _unanswered(error) from error
    if len(statements) != 1:
        raise InputError(f"a question is one SELECT, and this has {len(statements)} statements; ask them one by one")
    kind = statements[0].type
    if kind == duckdb.StatementType.MULTI:
        raise InputError("name the values of a PIVOT: PIVOT … ON column IN ('a', 'b') USING …")
    if kind != duckdb.StatementType.SELECT:
        raise InputError(f"a question is one SELECT, and this is {kind.name}; to save an answer, use --out FILE")


def answer_batches(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the answer and its rows, as they are found. Raises `duckdb.Error`, as the iterator does."""
    reader = connection.sql(sql).to_arrow_reader(ROWS)
    return reader.schema, _batches(reader)


def whole_answer(connection: duckdb.DuckDBPyConnection, sql: str, bounds: Bounds) -> pa.Table:
    """The answer in memory. Raises `duckdb.Error`, and `InputError` for one that is larger than DuckDB's own memory."""
    schema, batches = answer_batches(connection, sql)
    kept, size = [], 0
    for batch in batches:
        kept.append(batch)
        size += batch.nbytes
        if size > bounds.memory_bytes:
            raise InputError(
                f"the answer is larger than {bounds.memory_bytes / 1e9:.3g} GB; ask for fewer rows or columns,"
                " or write it to a file with --out FILE"
            )
    return pa.Table.from_batches(kept, schema=schema)


@contextmanager
def told_in_a_line(bounds: Bounds) -> Iterator[None]:
    """Turn DuckDB's errors into an `InputError` that says what to change in the question."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise bounds.exceeded() from error
    except duckdb.PermissionException as error:
        raise InputError(
            "a question reads the views of the scores (DESCRIBE shows them) and no other file, URL or extension;"
            " to save an answer, use --out FILE"
        ) from error
    except duckdb.Error as error:
        raise _unanswered(error) from error


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except OSError as error:  # Arrow's name for every error of DuckDB once rows have begun to flow
        kind = duckdb.OutOfMemoryException if _NO_MEMORY in str(error) else duckdb.IOException
        raise kind(str(error)) from error


def _unanswered(error: duckdb.Error) -> InputError:
    """DuckDB says what is wrong in the first lines; the question with a mark below it follows."""
    said = " ".join(str(error).partition("\n\nLINE ")[0].split())
    return InputError(f"the question cannot be answered: {said}")
