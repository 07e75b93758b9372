"""What the next run would do, how long it would take and what it would cost; nothing is written."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from pipelines.ingest.filters import Filters
from pipelines.scoring.changes import with_changes
from pipelines.scoring.plan import LARGEST_SHARD, grown_shard, unfinished_plans
from pipelines.scoring.sources import open_source
from pipelines.stop import Stop
from pipelines.storage import Store
from pipelines.table.views import run_records

RUNS_LOOKED_AT = 5


@dataclass(frozen=True, kw_only=True)
class PlanPreview:
    """The output of `rayscan score --dry-run`. Files that an unfinished run planned but did not score are `planned`."""

    listed: int
    planned: int
    """new + changed + again."""
    new: int
    """Files without a row of this model, or that came back after they had left the archive."""
    changed: int
    """Files of which this model has rows, but none of this version."""
    again: int
    """Files that failed before, or have a reason that is to be tried again."""
    done: int
    """Listed files with nothing to do."""
    given_up: int
    """Listed files that failed in too many runs."""
    removed: int
    """Files in the table that are no longer listed."""
    shards: int
    bytes: int
    """Size of the planned files."""
    unfinished: tuple[str, ...]
    """Runs that would be resumed first."""
    expected_seconds: float | None
    """None if no run recorded a rate."""
    core_hours: float | None
    """None if no run recorded a rate and its number of cores."""
    cost: float | None
    """Core-hours times the given price per core-hour."""
    basis: str
    """What the estimate is based on, in words."""
    ignored: Mapping[str, Mapping[str, Any]]
    """What of the archive is not listed: kind -> how many, and an example."""


@dataclass(frozen=True)
class _Rate:
    scans_per_second: float | None
    cores: float | None
    basis: str


def preview_plan(
    store: Store,
    *,
    source: str,
    model_id: str,
    shard_size: int | None = None,
    largest_shard: int = LARGEST_SHARD,
    max_nights: int = 5,
    again: Collection[str] = (),
    names_uris: bool = False,
    allow_removals: bool = False,
    filters: Filters | None = None,
    price_per_core_hour: float | None = None,
    stop: Stop | None = None,
) -> PlanPreview:
    """Preview the next run. Raises as `make_plan` does."""
    changes = with_changes(
        store,
        source=open_source(source, names_uris=names_uris, stop=stop, filters=filters),
        model_id=model_id,
        max_nights=max_nights,
        again=again,
        allow_removals=allow_removals,
        use=lambda _, changes: changes,
        stop=stop,
    )
    planned = changes.planned
    absent = store.is_local and not store.path.is_dir()
    rate = _rate([] if absent else _finished(store), model_id)
    seconds = planned / rate.scans_per_second if rate.scans_per_second else None
    hours = seconds * rate.cores / 3600 if seconds is not None and rate.cores else None
    return PlanPreview(
        listed=changes.listed,
        planned=planned,
        new=changes.new,
        changed=changes.changed,
        again=changes.again,
        done=changes.listed - planned - changes.given_up,
        given_up=changes.given_up,
        removed=changes.removed,
        shards=-(-planned // (shard_size or grown_shard(planned, largest_shard))),
        bytes=changes.bytes,
        unfinished=tuple(plan.run_id for plan in unfinished_plans(store, model_id)),
        expected_seconds=seconds,
        core_hours=hours,
        cost=hours * price_per_core_hour if hours is not None and price_per_core_hour is not None else None,
        basis=rate.basis,
        ignored=changes.ignored,
    )


def _finished(store: Store) -> list[dict[str, Any]]:
    """Records of the finished runs that scored anything, newest first."""
    keys = [info.key for chunk in store.list("runs") for info in chunk]
    records = run_records(store, (key for key in keys if key.endswith("/run.json")))
    return [record for record in reversed(records) if (record.get("scans_per_second") or 0) > 0]


def _rate(records: list[dict[str, Any]], model_id: str) -> _Rate:
    """Medians over the newest runs of this model, else of any model."""
    own = [record for record in records if record.get("model_id") == model_id]
    looked_at = (own or records)[:RUNS_LOOKED_AT]
    if not looked_at:
        return _Rate(None, None, "no finished run has recorded a rate yet; the first one will")
    cores = [number for record in looked_at if (number := _cores(record))]
    whose = "this model" if own else "other models"
    which = f"the last {len(looked_at)} runs" if len(looked_at) > 1 else "the last run"
    basis = f"median of {which} of {whose}: {median(r['scans_per_second'] for r in looked_at):,.1f} scans a second"
    if cores:
        basis += f" on {median(cores):g} cores"
    return _Rate(
        float(median(record["scans_per_second"] for record in looked_at)), median(cores) if cores else None, basis
    )


def _cores(record: Mapping[str, Any]) -> float | None:
    """CPU cores of a run: its field `cpus`, else the number in its layout's text, else None."""
    if isinstance(record.get("cpus"), int | float):
        return float(record["cpus"])
    match = re.search(r"(\d+) CPUs", json.dumps(record.get("layout") or ""))
    return float(match[1]) if match else None
