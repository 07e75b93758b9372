"""How often a shard died under its worker, so that the next worker knows whether a scan in it may be the cause.

    runs/<run_id>/attempts/00017.0     written when shard 17 is started for the first time, .1 the second time, …

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

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from pipelines.errors import RayscanError
from pipelines.storage import Store

log = logging.getLogger("rayscan")

MAX_ATTEMPTS: Final = 3
"""Attempts 1 to MAX_ATTEMPTS read a shard's scans in isolation; after that they are `failed`, `worker_lost`."""


def begin_attempt(store: Store, run_id: str, shard: int) -> int:
    """Record that a shard is started; returns how many attempts at it have died before.

    Checks for the marker first, because not every store refuses to write it twice. Two workers that start a shard at
    the same moment may count as one attempt; they write the same part.
    """
    attempt = 0
    while store.exists(_key(run_id, shard, attempt)) or not store.create(_key(run_id, shard, attempt), b""):
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


def take_back(store: Store, run_id: str, shards: Iterable[int]) -> None:
    """Remove the newest marker of each of these shards, whose attempts ended without a death.

    Never raises: it is called while another error is on its way, which must not be hidden.
    """
    wanted, newest = set(shards), dict[int, int]()
    try:
        quick = store.impatient()
        for key in _markers(quick, run_id):
            shard, _, attempt = key.rpartition("/")[2].partition(".")
            newest[int(shard)] = max(newest.get(int(shard), 0), int(attempt))
        quick.delete_all([_key(run_id, shard, attempt) for shard, attempt in newest.items() if shard in wanted])
    except RayscanError as error:
        log.warning("run %s: attempts are left as if their workers had died, which only costs time: %s", run_id, error)


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
