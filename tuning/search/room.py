"""What a trial gets, and how many trials run at a time: as many as the cluster has room for when it has grown.

A cluster that grows from nothing has no CPU when a search looks at it. So a search counts on the nodes its autoscaler
may start; trials that wait for a place are what makes it start some, and the search says that it waits.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from models.errors import InputError
from pipelines.capacity import Capacity, NodeType
from pipelines.claims import claims, own_job
from tuning.search.settings import SHARED_GPU, SearchSettings

log = logging.getLogger("rayscan")

PATIENCE: Final = 20.0
"""Seconds in which nothing runs before the search says that it waits: a process that starts takes some ten."""
EVERY: Final = 60.0
"""Seconds between two such lines."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """The resources of each worker of a trial, and how many trials run at a time."""

    each: Mapping[str, float]
    """As in `{"CPU": 1.0, "GPU": 0.5}`."""
    trials: int
    cores: int
    """How many tasks of one core run at a time where a search has such, as for heads on frozen features; no more than
    its trials may have."""


def room_for(settings: SearchSettings, capacity: Capacity) -> Room:
    """The room for a search on this cluster. Raises `InputError` where one trial has none, now or later."""
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = (SHARED_GPU if settings.workers_per_trial == 1 else 1.0) if capacity.most_gpus >= 1 else 0.0
    cpus = settings.cpus_per_trial or 1
    each = {"CPU": float(cpus)} | ({"GPU": gpus} if gpus else {})
    cores = capacity.most_room(gpus=capacity.most_gpus if gpus else 0)
    workers = cores // cpus
    if gpus:
        workers = min(workers, int(capacity.most_gpus / gpus))
    if not any(_fits(node, each) for node in (*capacity.nodes, *capacity.node_types)):
        workers = 0
    trials = workers // settings.workers_per_trial
    if trials < 1 and settings.max_concurrent is None:
        raise InputError(_too_small(settings, capacity, each))
    if settings.max_concurrent is not None:
        trials = settings.max_concurrent
        cores = min(cores, trials * settings.workers_per_trial * cpus)
    return Room(each=each, trials=trials, cores=max(cores, 1))


def _fits(node: NodeType, each: Mapping[str, float]) -> bool:
    return node.count > 0 and node.cpus >= each["CPU"] and node.gpus >= each.get("GPU", 0)


def _too_small(settings: SearchSettings, capacity: Capacity, each: Mapping[str, float]) -> str:
    needed = {name: settings.workers_per_trial * amount for name, amount in each.items()}
    on = "" if settings.workers_per_trial == 1 else f", on nodes that have {dict(each)}"
    most = ", when it has grown," if capacity.node_types else ""
    return (
        f"one trial needs {needed}{on}, but the cluster{most} has {capacity.most_cpus} CPUs and"
        f" {capacity.most_gpus} GPUs, {capacity.largest_cpus} CPUs on its largest node; lower --cpus-per-trial or"
        " --gpus-per-trial, or give --concurrent to wait for nodes that cannot be seen from here"
    )


class Waiting:
    """Says that a search waits for nodes, once in a while. Ray Tune pickles it together with the ledger."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.said = -EVERY

    def look(self, waiting: int, running: int, now: float | None = None) -> None:
        """Take note of how many trials wait for a place, and how many run; `now` is of `time.monotonic`."""
        now = time.monotonic() if now is None else now
        if running or not waiting:
            self.since = None
            return
        self.since = now if self.since is None else self.since
        if now - self.since >= PATIENCE and now - self.said >= EVERY and not _has_place():
            self.said = now
            log.info("the search waits for nodes, for %.0f s now: %s", now - self.since, _free())


def _has_place() -> bool:
    """Whether a trial of this search has a place, so that its process is only being started."""
    own = own_job()
    return any(claim.node is not None for claim in claims() or () if claim.job == own)


def _free() -> str:
    """What of the cluster is free, in words."""
    import ray  # noqa: PLC0415 (the sizes above need none)

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return " and ".join(f"{free.get(name, 0):g} of {have.get(name, 0):g} {name}s are free" for name in ("CPU", "GPU"))
