"""The driver's side of the table: parts that actors wrote become rows of the table, in groups.

A commit rewrites nothing but costs a request or two and a version of the table, so parts wait for each other a little.
Whatever is lost between a part and its commit is found again: `take_in` commits the parts that an earlier attempt of
the run wrote, and `reconcile.py` counts only what is in the table.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.scoring.plan import Plan
from pipelines.scoring.sink import part_key, part_of, written_sizes
from pipelines.storage import Store
from pipelines.table.delta import Part, ScoresTable

GROUP_PARTS: Final = 100
GROUP_SECONDS: Final = 5.0
"""A part is committed with the next part that ends so long after the last commit, at the latest at the end."""
READ_THREADS: Final = 8


class GroupCommits:
    """Commits the parts of one run as they come; call `flush` at the end."""

    def __init__(self, table: ScoresTable, run_id: str) -> None:
        self._table = table
        self._run_id = run_id
        self._waiting: list[Part] = []
        self._committed = time.monotonic()

    def add(self, part: Part) -> None:
        """Take a part that is written. Raises as `ScoresTable.commit` does."""
        self._waiting.append(part)
        if len(self._waiting) >= GROUP_PARTS or time.monotonic() - self._committed >= GROUP_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what waits. Raises as `ScoresTable.commit` does."""
        if self._waiting:
            self._table.commit(self._waiting, self._run_id)
        self._waiting = []
        self._committed = time.monotonic()


def take_in(table: ScoresTable, plan: Plan) -> set[int]:
    """The shards of a run that are in the table, after committing the parts that an earlier attempt left behind.

    A part that cannot be read, because a store without atomic puts kept half of it, is not committed: its shard is
    scored again.
    """
    committed = set(table.run_parts(plan.run_id, plan.model_id))
    left = {shard: size for shard, size in written_sizes(table.store, plan).items() if shard not in committed}
    with ThreadPoolExecutor(READ_THREADS) as threads:
        rows = dict(zip(left, threads.map(lambda shard: _rows(table.store, plan, shard), left), strict=True))
    whole = {shard: count for shard, count in rows.items() if count is not None}
    if whole:
        parts = [part_of(plan, shard, size=left[shard], rows=count) for shard, count in whole.items()]
        table.commit(parts, plan.run_id)
    return committed | set(whole)


def _rows(store: Store, plan: Plan, shard: int) -> int | None:
    try:
        return int(pq.read_metadata(pa.BufferReader(store.get(part_key(plan, shard)))).num_rows)
    except pa.ArrowException:
        return None
