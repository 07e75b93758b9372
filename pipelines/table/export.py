"""The answer to a question as a file: CSV, JSON or Parquet, on disk or in a bucket, whole or not at all.

Rows are written as DuckDB finds them, to a private file first, which becomes the object when it is whole. So an answer
of any length takes the same memory, and an upload can be tried again without asking again.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import IO, Final, Literal

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.storage import Store, file_place, open_store
from pipelines.table.guarded import Bounds, private_folder
from pipelines.table.query import SUMMARY, read_scores
from pipelines.table.question import answer_batches, require_select, told_in_a_line

Form = Literal["csv", "json", "parquet"]
FORMS: Final[tuple[Form, ...]] = ("csv", "json", "parquet")


def export_answer(
    uri: str,
    sql: str | None,
    out: str,
    form: Form | None = None,
    *,
    bounds: Bounds | None = None,
    as_of: int | datetime | None = None,
) -> dict[str, str | int]:
    """Write the answer of a question on the scores at `uri` to one file at `out`; returns its URI and number of rows.

    Without `form` the suffix of `out` tells it. Raises `InputError` as `ask` does, for an unknown format, and for a
    place within the scores.
    """
    bounds, question = bounds or Bounds(), sql or SUMMARY
    require_select(question)
    form = form or form_of(out)
    store, name = answer_place(uri, out)

    def written(connection: duckdb.DuckDBPyConnection) -> int:
        with file.open("wb") as sink:
            return write_answer(*answer_batches(connection, question), sink, form, most_bytes=bounds.disk_bytes)

    with private_folder() as folder:
        file = folder / "answer"
        with told_in_a_line(bounds):
            rows = read_scores(uri, written, bounds=bounds, as_of=as_of, sql=question)
        store.put_file(name, file)
    return {"answer": store.uri(name), "rows": rows}


def form_of(out: str) -> Form:
    """The format that a file's name tells. Raises `InputError`."""
    suffix = PurePosixPath(out).suffix.lower().removeprefix(".")
    for form in FORMS:
        if form == suffix:
            return form
    raise InputError(f"{out}: the name does not tell the format; end it in .csv, .json or .parquet, or add --format")


def answer_place(uri: str, out: str) -> tuple[Store, str]:
    """The store and the key of an answer. Raises `InputError` for a folder, and for a place within the scores."""
    store, name = file_place(out, "an answer", "answer.parquet")
    if f"{store.uri(name)}/".startswith(f"{open_store(uri).root}/"):
        raise InputError(f"{out}: lies within the scores; write the answer elsewhere")
    return store, name


def write_answer(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    sink: IO[bytes],
    form: Form,
    *,
    most_bytes: int | None = None,
) -> int:
    """Write an answer in pieces; returns the number of rows. Raises `InputError` for more than `most_bytes`."""
    counted = _Counted(batches, sink, most_bytes)
    if form == "parquet":
        with pq.ParquetWriter(sink, schema) as parquet:
            for batch in counted:
                parquet.write_batch(batch)
    elif form == "csv":
        flat = pa.schema([field.with_type(pa.string()) if _nested(field) else field for field in schema])
        with pyarrow.csv.CSVWriter(sink, flat) as csv:
            for batch in counted:
                csv.write_batch(_flat(batch, flat))
    else:
        lead = b"["
        for batch in counted:
            for row in batch.to_pylist():
                sink.write(lead + json.dumps(row, default=str).encode())
                lead = b",\n"
        sink.write(b"[]\n" if lead == b"[" else b"]\n")
    return counted.rows


class _Counted:
    """The pieces of an answer, counted as they pass."""

    def __init__(self, batches: Iterable[pa.RecordBatch], sink: IO[bytes], most_bytes: int | None) -> None:
        self._batches, self._sink, self._most = batches, sink, most_bytes
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            yield batch
            self.rows += batch.num_rows
            if self._most is not None and self._sink.tell() > self._most:
                raise InputError(
                    f"the answer takes more than the {self._most / 1e9:.3g} GB of temporary disk it may; ask for fewer"
                    " rows or columns, or give the question more with --memory"
                )


def _flat(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """CSV has no lists: they become JSON text."""
    columns = [
        pa.array([None if v is None else json.dumps(v, default=str) for v in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _nested(field: pa.Field) -> bool:
    return bool(pa.types.is_nested(field.type))
