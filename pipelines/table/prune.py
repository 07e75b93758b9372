"""Removes the folders of old runs: plan, record, report and whatever else lies in `runs/<run_id>`. Scores stay.

Who reads `runs/`, and so what is kept however old it is:

    resuming, `explain`      a run without a record is never removed; nor is any of its model that was planned later, by
                             whose lease a plan that comes too late is known (`scoring/runs.py`)
    drift, `score --dry-run` the newest NIGHTS runs of each model that had anything to do
    reports, `models`        the newest finished run of each model

The views `runs` and `drift` and the pages of later nights lose the rows of what is removed. The table, its older
versions, `identity/` and the record of models do not depend on it: patients are erased from them by `erase`, which
holds the same leases, so that neither works on a folder that the other removes.

A folder is removed plan.json first and run.json last: whatever dies in between, it is still a finished run.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pipelines.errors import InputError
from pipelines.storage import ObjectInfo, Store, open_store
from pipelines.table.lease import lease_of_scores
from pipelines.table.presence import no_run
from pipelines.table.record import NIGHTS
from pipelines.table.views import run_records

LEAST: Final = timedelta(days=1)
MOST: Final = timedelta(days=36_500)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What was removed, or would be."""

    removed: list[str]
    """Run ids, oldest first."""
    objects: int
    bytes: int
    kept: int
    """Runs that stay, for whatever reason."""
    kept_though_old: int
    """Of these, finished runs that are old enough and still needed."""
    unfinished: int
    """Runs without a record, which are never removed."""
    dry_run: bool


def check_keep(keep: timedelta) -> None:
    """Raise `InputError` unless it is a time for which runs can be kept: a day at least."""
    if not LEAST <= keep <= MOST:
        raise InputError(f"runs are kept for a day (1d) to a hundred years (36500d), not for {_in_words(keep)}")


def prune(uri: str, keep: timedelta, *, dry_run: bool = False, wait: float = 0.0) -> Pruning:
    """Remove the folders of the runs at a URI that were finished longer ago than `keep` and that nobody needs.

    Holds the lease of each model of which it removes anything; waits up to `wait` seconds for a run at work. Raises
    `InputError` if `keep` is out of range or nothing was ever scored, `IncompleteError` if a run is still at work.
    """
    check_keep(keep)
    store = open_store(uri)
    folders = defaultdict[str, list[ObjectInfo]](list)
    for chunk in store.list("runs"):
        for info in chunk:
            folders[info.key.split("/")[1]].append(info)
    runs = [_run(record, folders) for record in run_records(store, (i.key for f in folders.values() for i in f))]
    if not runs:
        raise no_run(store)
    before = datetime.now(UTC) - keep
    old = [run for run in runs if run.ended is not None and run.ended < before]
    needed = _needed(runs)
    doomed = [run for run in old if run.run_id not in needed]
    if not dry_run:
        _remove(store, doomed, wait)
    gone = [info for run in doomed for info in run.objects]
    return Pruning(
        removed=[run.run_id for run in doomed],
        objects=len(gone),
        bytes=sum(info.size for info in gone),
        kept=len(runs) - len(doomed),
        kept_though_old=len(old) - len(doomed),
        unfinished=sum(run.ended is None for run in runs),
        dry_run=dry_run,
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    run_id: str
    model_id: str
    planned: int
    ended: datetime | None
    """None: it is unfinished."""
    objects: list[ObjectInfo]


def _run(record: Mapping[str, Any], folders: Mapping[str, list[ObjectInfo]]) -> _Run:
    """A run from its record or its plan. If a record does not say when it was finished, the object's time counts."""
    objects = folders[record["run_id"]]
    written = [info.modified for info in objects if info.key.endswith("/run.json")]
    finished = record.get("finished")
    return _Run(
        run_id=record["run_id"],
        model_id=record.get("model_id", ""),
        planned=record.get("planned", 0),
        ended=(datetime.fromisoformat(finished) if finished else written[0]) if written else None,
        objects=objects,
    )


def _needed(runs: list[_Run]) -> set[str]:
    """The runs that something still reads: see above."""
    needed = set()
    for model in {run.model_id for run in runs}:
        mine = sorted((run for run in runs if run.model_id == model), key=lambda run: run.run_id)
        finished = [run for run in mine if run.ended is not None]
        first = next((run.run_id for run in mine if run.ended is None), None)
        late = [run for run in mine if first is not None and run.run_id >= first]
        nights = [run for run in finished if run.planned][-NIGHTS:]
        needed |= {run.run_id for run in (*finished[-1:], *nights, *late)}
    return needed


def _remove(store: Store, doomed: list[_Run], wait: float) -> None:
    """Remove the folders of these runs, each model's under its lease."""
    if not doomed:
        return
    conditional = store.has_conditional_put()
    for model in sorted({run.model_id for run in doomed}):
        with lease_of_scores(store, model, conditional=conditional, wait=wait):
            for run in doomed:
                if run.model_id == model:
                    folder = f"runs/{run.run_id}"
                    ends = [f"{folder}/plan.json", f"{folder}/run.json"]
                    store.delete(ends[0])
                    store.delete_all([info.key for info in run.objects if info.key not in ends])
                    store.delete(ends[1])


def _in_words(keep: timedelta) -> str:
    seconds = int(keep.total_seconds())
    return f"{seconds} seconds" if seconds < LEAST.total_seconds() else f"{keep.days} days"
