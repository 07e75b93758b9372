"""Writes one part per shard, exactly once.

The name of a part is fixed by its run and shard, and it is written whole by a create-only put. A retried task, a
resumed run or a worker whose driver has died can only write the same part, or find it written. On a store without
conditional put, a part is overwritten with the same rows. The driver commits parts to the table
(`scoring/commits.py`); until then nobody sees them.
"""

import re
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART
from pipelines.errors import NotFoundError
from pipelines.scoring.plan import Plan
from pipelines.storage import Store
from pipelines.table.delta import Part, part_folder


def write_part(store: Store, plan: Plan, shard: int, rows: pa.Table) -> Part:
    """Write the rows of one shard (contracts.PART, or SCORES) and return the part, this one or the one found there."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.select(PART.names).cast(PART), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    key = part_key(plan, shard)
    size = len(data) if store.create(key, data) else store.head(key).size
    return part_of(plan, shard, size=size, rows=rows.num_rows)


def part_key(plan: Plan, shard: int) -> str:
    """Key of a shard's part below the root of the scores."""
    return f"{part_folder(plan.model_id, plan.date)}/{plan.run_id}-{shard:05d}.parquet"


def part_of(plan: Plan, shard: int, *, size: int, rows: int) -> Part:
    """The part of a shard, of so many bytes and rows."""
    day = date.fromisoformat(plan.date)
    return Part(key=part_key(plan, shard), size=size, rows=rows, model_id=plan.model_id, date=day)


def written_part(store: Store, plan: Plan, shard: int, rows: int) -> Part | None:
    """The part of this shard, if it is written."""
    try:
        return part_of(plan, shard, size=store.head(part_key(plan, shard)).size, rows=rows)
    except NotFoundError:
        return None


def written_rows(store: Store, plan: Plan, shard: int, columns: list[str]) -> pa.Table:
    """These columns of a part that is written."""
    return pq.read_table(pa.BufferReader(store.get(part_key(plan, shard))), columns=columns)


def written_sizes(store: Store, plan: Plan) -> dict[int, int]:
    """The shards of this plan whose part is written, committed or not: shard -> bytes."""
    names = re.compile(rf"{re.escape(plan.run_id)}-(\d+)\.parquet")
    sizes = {}
    for chunk in store.list(part_folder(plan.model_id, plan.date)):
        for info in chunk:
            if match := names.fullmatch(info.key.rpartition("/")[2]):
                sizes[int(match[1])] = info.size
    return sizes
