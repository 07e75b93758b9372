"""The versions of the table of scores: what made each, and which one a question is about."""

from datetime import UTC, date, datetime, time
from typing import Final

import pyarrow as pa

from pipelines.contracts import TIMESTAMP
from pipelines.errors import InputError
from pipelines.storage import open_store
from pipelines.table.delta import open_table
from pipelines.table.presence import require_any

HISTORY: Final = pa.schema(
    [
        pa.field("version", pa.int64()),
        pa.field("at", TIMESTAMP),
        pa.field("operation", pa.string()),  # create, score, compact, erase
        pa.field("run_id", pa.string()),
        pa.field("rows", pa.int64()),  # added by a run, rewritten by a compaction, removed by an erasure
    ]
)


def history(uri: str) -> pa.Table:
    """One row per version of the scores at a URI, newest first, the schema HISTORY.

    Raises `InputError` if nothing was ever scored there.
    """
    store = open_store(uri)
    table = open_table(store)
    if table is None:
        require_any(store)
    return pa.Table.from_pylist(table.history() if table else [], schema=HISTORY)


def parse_as_of(text: str) -> int | datetime:
    """The version that a text names: a number; an ISO 8601 time; or a day, which means its end, in UTC.

    Raises `InputError`.
    """
    try:
        if text.isdigit():
            return int(text)
        if len(text) == len("2026-03-03"):
            return datetime.combine(date.fromisoformat(text), time.max, UTC)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"{text!r} is no version: write its number, a day (2026-03-03) or a time (2026-03-03T12:00)"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
