"""Tombstones: rows of status `removed`, for files of the table that are no longer in their archive.

    scores/model_id=<id>/date=<day>/<run_id>-gone00000.parquet

The driver writes them before plan.json, so a plan that exists has them all, and commits them with the run. The view
`latest` leaves such a file out until it comes back and is scored again.
"""

from datetime import UTC, date, datetime
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART, Reason, Status
from pipelines.decoding.version import DECODER_VERSION
from pipelines.scoring.batches import in_groups
from pipelines.storage import Store
from pipelines.table.delta import Part, part_folder

ROWS: Final = 500_000
"""Tombstones of one part."""
NO_SHARD: Final = -1


def write_removals(
    store: Store, gone: pa.RecordBatchReader, *, run_id: str, model_id: str, day: str, table_version: int
) -> None:
    """Write the tombstones of these files, columns scan_id, uri, etag, site, patient_key and study_date."""
    for number, rows in enumerate(in_groups((pa.Table.from_batches([batch]) for batch in gone), ROWS)):
        n = rows.num_rows
        columns = {
            **{name: rows[name] for name in rows.column_names},
            "status": [Status.REMOVED.value] * n,
            "reason": [Reason.LEFT_ARCHIVE.value] * n,
            "decoder_version": [DECODER_VERSION] * n,
            "run_id": [run_id] * n,
            "shard": [NO_SHARD] * n,
            "plan_version": [table_version] * n,
            "supersedes": [True] * n,
            "scored_at": [datetime.now(UTC)] * n,
        }
        filled = {name: columns[name] if name in columns else pa.nulls(n, PART.field(name).type) for name in PART.names}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(filled).cast(PART), sink, compression="zstd")
        store.put(_key(run_id, model_id, day, number), sink.getvalue().to_pybytes())


def removal_parts(store: Store, *, run_id: str, model_id: str, day: str, removed: int) -> list[Part]:
    """The parts of a run's tombstones, of which there are `removed`."""
    parts = []
    for number, start in enumerate(range(0, removed, ROWS)):
        key = _key(run_id, model_id, day, number)
        rows = min(ROWS, removed - start)
        part = Part(key=key, size=store.head(key).size, rows=rows, model_id=model_id, date=date.fromisoformat(day))
        parts.append(part)
    return parts


def _key(run_id: str, model_id: str, day: str, number: int) -> str:
    return f"{part_folder(model_id, day)}/{run_id}-gone{number:05d}.parquet"
