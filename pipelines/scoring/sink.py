"""Writes one part per shard, exactly once.

The name of a part is fixed by its run and shard, and it is written whole by a create-only put. A retried task, a
resumed run or a worker whose driver has died can only write the same part, or find it written. On a store without
conditional put, a part is overwritten with the same rows.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART
from pipelines.scoring.plan import Plan
from pipelines.storage import Store


def write_part(store: Store, plan: Plan, shard: int, rows: pa.Table) -> bool:
    """Write the rows of one shard (contracts.PART); returns False if the part was already there."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.cast(PART), sink, compression="zstd")
    return store.create(part_name(plan, shard), sink.getvalue().to_pybytes())


def part_name(plan: Plan, shard: int) -> str:
    """Key of a shard's part below the root of the scores."""
    return f"{_folder(plan)}/{plan.run_id}-{shard:05d}.parquet"


def is_written(store: Store, plan: Plan, shard: int) -> bool:
    """Whether the part of this shard is written."""
    return store.exists(part_name(plan, shard))


def written_shards(store: Store, plan: Plan) -> set[int]:
    """Shards of this plan whose part is written."""
    there = {info.key for chunk in store.list(_folder(plan)) for info in chunk}
    return {shard for shard in range(plan.shards) if part_name(plan, shard) in there}


def _folder(plan: Plan) -> str:
    return f"scores/model={plan.model_id}/date={plan.date}"
