"""Accounts for every row: a run's parts are read back and compared with its plan, scan by scan."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import OUTCOMES
from pipelines.errors import IncompleteError
from pipelines.scoring.plan import Plan, read_shard
from pipelines.scoring.sink import part_name, written_shards
from pipelines.storage import Store
from pipelines.table.drift import DriftTally

READ_THREADS = 8
_COLUMNS = ["scan_id", "status", "reason", "site", "probability", "grey_mean", "grey_spread", "ood_score"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The counts of a run's rows."""

    counts: Counter[str] = field(default_factory=lambda: Counter({status.value: 0 for status in OUTCOMES}))
    """By status; their sum is the number of planned scans."""
    reasons: Counter[str] = field(default_factory=Counter)
    """By reason, of the rows without a probability."""


def reconcile(store: Store, plan: Plan, drift: DriftTally) -> Account:
    """Count a run's rows from its parts, and add the parts to `drift`.

    Raises `IncompleteError` unless every part holds exactly the scans of its shard, each once.
    """
    missing = set(range(plan.shards)) - written_shards(store, plan)
    if missing:
        raise IncompleteError(
            f"run {plan.run_id}: {len(missing)} of {plan.shards} shards are not written; run the same command again"
        )
    account = Account()
    for part in _parts(store, plan):
        account.counts.update(part["status"].to_pylist())
        account.reasons.update(reason for reason in part["reason"].to_pylist() if reason)
        drift.add(part)
    return account


def _parts(store: Store, plan: Plan) -> Iterator[pa.Table]:
    """The checked parts in order, READ_THREADS at a time, so that a large run is never in memory at once."""
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for start in range(0, plan.shards, READ_THREADS):
            shards = range(start, min(plan.shards, start + READ_THREADS))
            yield from threads.map(lambda shard: _checked_part(store, plan, shard), shards)


def _checked_part(store: Store, plan: Plan, shard: int) -> pa.Table:
    name = part_name(plan, shard)
    remedy = "move it away and run the same command again"
    try:
        part = pq.read_table(pa.BufferReader(store.get(name)), columns=_COLUMNS)
    except pa.ArrowException as error:
        raise IncompleteError(f"{store.uri(name)} is not a readable part; {remedy}") from error
    planned = read_shard(store, plan.run_id, shard)
    if sorted(part["scan_id"].to_pylist()) != sorted(planned["scan_id"].to_pylist()):
        raise IncompleteError(
            f"{store.uri(name)} holds {part.num_rows} rows that are not the {planned.num_rows} scans of its shard;"
            f" {remedy}"
        )
    return part
