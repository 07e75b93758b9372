"""The answer to a query, printed for people (table, CSV) or for machines (JSON, Parquet)."""

import io
import json
import sys

import pyarrow as pa

from cluster import output
from pipelines.errors import InputError
from pipelines.table.export import write_answer

TABLE_ROWS = 200
"""A terminal is no place for more; the other formats print every row."""


def print_answer(answer: pa.Table, form: str) -> None:
    """Write an answer to stdout as table, csv, json or parquet. Raises `InputError` for Parquet onto a terminal."""
    if form == "json":
        output.write(json.dumps(answer.to_pylist(), default=str))
    elif form == "table":
        _print_table(answer)
    elif sys.stdout.isatty() and form == "parquet":
        raise InputError("Parquet is bytes, not text; write it to a file with --out answer.parquet")
    else:
        sink = io.BytesIO()
        write_answer(answer.schema, answer.to_batches(), sink, "csv" if form == "csv" else "parquet")
        sys.stdout.buffer.write(sink.getbuffer())
        sys.stdout.buffer.flush()


def _print_table(answer: pa.Table) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for field in answer.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        table.add_column(Text(field.name), justify="right" if number else "left", overflow="fold")
    for row in answer.slice(0, TABLE_ROWS).to_pylist():
        table.add_row(*[Text(_cell(value)) for value in row.values()])
    # Off a terminal rich would cut lines at 80 columns.
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, width=width, soft_wrap=not sys.stdout.isatty()).print(table)
    if answer.num_rows == 0:
        output.write("no rows")
    if answer.num_rows > TABLE_ROWS:
        output.complain(f"{answer.num_rows - TABLE_ROWS} more rows; see them all with --format csv")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
