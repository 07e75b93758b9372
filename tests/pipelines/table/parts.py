"""Parts of the table of scores with rows that a test chooses."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART, scan_id
from pipelines.storage import Store
from pipelines.table.delta import Part, create_table, open_table, part_folder
from pipelines.table.parts import fetch_parts

DAY = date(2026, 3, 3)


def score_row(uri: str, **values: Any) -> dict[str, Any]:
    """A row of contracts.PART: scored, probability 0.5; `values` replace its columns."""
    row = dict.fromkeys(PART.names) | {
        "scan_id": scan_id(uri, "1"),
        "uri": uri,
        "etag": "1",
        "status": "scored",
        "probability": 0.5,
        "class_probabilities": [0.5, 0.5],
        "prediction": "PNEUMONIA",
        "operating_point": "balanced",
        "decoder_version": "1",
        "run_id": "run",
        "shard": 0,
        "plan_version": 0,
        "supersedes": False,
        "scored_at": datetime(2026, 3, 3, tzinfo=UTC),
    }
    return row | values


def put_part(
    store: Store,
    run_id: str,
    shard: int,
    rows: Sequence[str | Mapping[str, Any]],
    *,
    model_id: str = "model1",
    day: date = DAY,
) -> Part:
    """Write a part of these rows, or of these uris, and return it; it is not committed."""
    filled = [score_row(row) if isinstance(row, str) else dict(row) for row in rows]
    table = pa.Table.from_pylist([{**row, "run_id": run_id, "shard": shard} for row in filled], schema=PART)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    key = f"{part_folder(model_id, f'{day}')}/{run_id}-{shard:05d}.parquet"
    store.put(key, data)
    return Part(key=key, size=len(data), rows=table.num_rows, model_id=model_id, date=day)


def commit_part(
    store: Store,
    run_id: str,
    shard: int,
    rows: Sequence[str | Mapping[str, Any]],
    *,
    model_id: str = "model1",
    day: date = DAY,
) -> Part:
    """Write a part as `put_part` does and commit it to the table, which is made if need be."""
    part = put_part(store, run_id, shard, rows, model_id=model_id, day=day)
    create_table(store, conditional=store.has_conditional_put()).commit([part], run_id)
    return part


def rows_of(store: Store) -> list[str]:
    """The scan_id of every row of the table, sorted."""
    table = open_table(store)
    files = fetch_parts(store, table.parts()) if table else []
    read = [pq.read_table(file, columns=["scan_id"], partitioning=None) for file in files]
    return sorted(scan for rows in read for scan in rows["scan_id"].to_pylist())
