"""Accounts for every row: the parts of a run in the table are read and compared with its plan, scan by scan."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts import OUTCOMES, Status
from pipelines.errors import IncompleteError, NotFoundError
from pipelines.scoring.plan import SHARDS_PER_FILE, Plan, read_scan_ids
from pipelines.scoring.quarantine import Corner
from pipelines.table.delta import Part, ScoresTable
from pipelines.table.drift import DriftTally

READ_THREADS = 8
_COLUMNS = ["scan_id", "status", "reason", "site", "probability", "grey_mean", "grey_spread", "ood_score"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The counts of a run's rows."""

    counts: Counter[str] = field(default_factory=lambda: Counter({status.value: 0 for status in OUTCOMES}))
    """By status; their sum is the number of planned scans."""
    reasons: Counter[str] = field(default_factory=Counter)
    """By reason, of the rows that were not scored."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """By the prefix of a corner in quarantine: its `failed` rows."""


def reconcile(table: ScoresTable, plan: Plan, drift: DriftTally, corners: Sequence[Corner] = ()) -> Account:
    """Count a run's rows from the parts in this version of the table, and add the parts to `drift`.

    Raises `IncompleteError` unless every part holds exactly the scans of its shard, each once, in the plan's order.
    """
    parts = table.run_parts(plan.run_id, plan.model_id)
    missing = plan.shards - len(parts)
    if missing:
        raise IncompleteError(
            f"run {plan.run_id}: {missing} of {plan.shards} shards are not in the table; run the same command again"
        )
    account = Account()
    for shard, (part, rows) in enumerate(_checked(table, plan, parts, [*_COLUMNS, "uri"] if corners else _COLUMNS)):
        account.counts.update(_counted(rows["status"]))
        account.reasons.update(_counted(rows["reason"].drop_null()))
        drift.add(rows)
        for corner in corners:
            account.quarantined[corner.prefix] += _failed_in(corner, rows)
        if part != parts[shard]:  # without conditional put, a process that outlived its driver wrote the rows again
            table.commit([part], plan.run_id)
    return account


def _failed_in(corner: Corner, rows: pa.Table) -> int:
    held = pc.and_(pc.starts_with(rows["uri"], corner.prefix), pc.equal(rows["status"], Status.FAILED.value))
    return int(pc.sum(held).as_py() or 0)


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def _checked(
    table: ScoresTable, plan: Plan, parts: dict[int, Part], columns: list[str]
) -> Iterator[tuple[Part, pa.Table]]:
    """The checked parts in order, READ_THREADS at a time, so that a large run is never in memory at once."""
    with ThreadPoolExecutor(READ_THREADS) as threads:
        for first in range(0, plan.shards, SHARDS_PER_FILE):
            planned = read_scan_ids(table.store, plan.run_id, first)
            for start in range(0, len(planned), READ_THREADS):
                some = planned[start : start + READ_THREADS]
                theirs = [parts[first + start + number] for number in range(len(some))]
                yield from threads.map(partial(_checked_part, table, columns), theirs, some)


def _checked_part(
    table: ScoresTable, columns: list[str], part: Part, planned: pa.ChunkedArray
) -> tuple[Part, pa.Table]:
    """The part as it is in the store, and its rows. A wrong one leaves the table, so that its shard is scored again."""
    store = table.store
    try:
        data = store.get(part.key)
        rows = pq.read_table(pa.BufferReader(data), columns=columns)
    except (NotFoundError, pa.ArrowException) as error:
        raise _removed(table, part, "cannot be read") from error
    if not rows["scan_id"].equals(planned):
        raise _removed(table, part, f"holds {rows.num_rows} rows, not the {len(planned)} scans of its shard")
    return replace(part, size=len(data), rows=rows.num_rows), rows


def _removed(table: ScoresTable, part: Part, fault: str) -> IncompleteError:
    table.replace([part], [], {"operation": "remove damaged part"}, finished=())
    table.store.delete(part.key)
    return IncompleteError(
        f"{table.store.uri(part.key)} {fault}; it was removed: run the same command again to score its scans once more"
    )
