"""How often a shard died under its worker, so that the next worker knows whether a scan in it may be the cause.

    runs/<run_id>/attempts/00017.0     written when shard 17 is started for the first time, .1 the second time, …

It holds the worker's node, process and free memory (`whereabouts.py`), so that a worker that dies leaves them behind.
An attempt has one of three ends:

    done          its part is written; nobody starts the shard again
    store_fault   the store failed, or the driver was stopped in good order: the marker is taken back
    died          nobody was left to take the marker back: its worker, its node or the driver was killed

Only `died` leaves a marker that counts. It may have been a scan that killed the worker, or a machine that lost its
power; from outside they look alike. So the next attempt treats each scan as the possible cause and reads it in
isolation, and after MAX_ATTEMPTS deaths the shard is given up for this run: a crash is not repeated for ever.

A marker is taken back by whoever is left: by the worker if the store fails under it, by the driver for the shards that
were under way when it was stopped. That is one quick try. If the scores' own store is down as well, the marker stays,
and the shard is read in isolation next time: slower, and still right.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

from pipelines.errors import NotFoundError, RayscanError
from pipelines.scoring.whereabouts import Whereabouts, here
from pipelines.storage import Store

log = logging.getLogger("rayscan")

MAX_ATTEMPTS: Final = 3
"""Attempts 1 to MAX_ATTEMPTS read a shard's scans in isolation; after that they are `failed`, `worker_lost`."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The newest attempt at a shard whose marker is there."""

    shard: int
    number: int
    """From 0, which is also how many attempts at this shard died before it."""
    where: Whereabouts | None = None
    """Where it was begun; None if that was not read, or is not known."""


def begin_attempt(store: Store, run_id: str, shard: int) -> int:
    """Record that a shard is started; returns how many attempts at it have died before.

    Checks for the marker first, because not every store refuses to write it twice. Two workers that start a shard at
    the same moment may count as one attempt; they write the same part.
    """
    attempt, where = 0, json.dumps(asdict(here())).encode()
    while store.exists(_key(run_id, shard, attempt)) or not store.create(_key(run_id, shard, attempt), where):
        attempt += 1
    return attempt


@contextmanager
def no_death(store: Store, run_id: str, shard: int) -> Iterator[None]:
    """Take the marker of a shard's attempt back if the block raises a `RayscanError`: the worker lives."""
    try:
        yield
    except RayscanError:
        take_back(store, run_id, [shard])
        raise


def take_back(store: Store, run_id: str, shards: Iterable[int]) -> list[int]:
    """Remove the newest marker of each of these shards, whose attempts ended without a death; returns which had one.

    Never raises: it is called while another error is on its way, which must not be hidden.
    """
    wanted = set(shards)
    try:
        quick = store.impatient()
        under_way = [attempt for attempt in newest_attempts(quick, run_id) if attempt.shard in wanted]
        quick.delete_all([_key(run_id, attempt.shard, attempt.number) for attempt in under_way])
    except RayscanError as error:
        log.warning("run %s: attempts are left as if their workers had died, which only costs time: %s", run_id, error)
        return []
    return [attempt.shard for attempt in under_way]


def newest_attempts(store: Store, run_id: str) -> list[Attempt]:
    """The newest attempt at each shard that has a marker, by shard; by one listing, so without `where`."""
    newest = dict[int, int]()
    for key in _markers(store, run_id):
        shard, _, number = key.rpartition("/")[2].partition(".")
        newest[int(shard)] = max(newest.get(int(shard), 0), int(number))
    return [Attempt(shard=shard, number=number) for shard, number in sorted(newest.items())]


def located(store: Store, run_id: str, attempts: Collection[Attempt]) -> list[Attempt]:
    """The same attempts with where each was begun; one request an attempt."""
    return [Attempt(shard=each.shard, number=each.number, where=_where(store, run_id, each)) for each in attempts]


def _where(store: Store, run_id: str, attempt: Attempt) -> Whereabouts | None:
    try:
        return Whereabouts(**json.loads(store.get(_key(run_id, attempt.shard, attempt.number))))
    except (NotFoundError, ValueError, TypeError):  # taken back meanwhile, or by a version that left it empty
        return None


def lost_workers(store: Store, run_id: str) -> int:
    """How often shards of a run were restarted after a death."""
    return sum(1 for key in _markers(store, run_id) if not key.endswith(".0"))


def forget_attempts(store: Store, run_id: str) -> None:
    """Remove the markers of a finished run."""
    store.delete_all(_markers(store, run_id))


def _markers(store: Store, run_id: str) -> list[str]:
    return [info.key for chunk in store.list(f"runs/{run_id}/attempts") for info in chunk]


def _key(run_id: str, shard: int, attempt: int) -> str:
    return f"runs/{run_id}/attempts/{shard:05d}.{attempt}"
