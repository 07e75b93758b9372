"""How often a shard was started, so that a worker knows whether an earlier one died on it.

    runs/<run_id>/attempts/00017.0     written when shard 17 is started for the first time, .1 the second time, …

A shard is restarted because a scan in it killed its worker, or because the worker, its node or the driver died for
another reason; from outside they look alike. So a second attempt treats each scan as the possible cause and reads it in
isolation, and after MAX_ATTEMPTS the shard is given up for this run: a crash is not repeated for ever.
"""

from typing import Final

from pipelines.storage import Store

MAX_ATTEMPTS: Final = 3
"""Attempts 1 to MAX_ATTEMPTS read a shard's scans in isolation; after that they are `failed`, `worker_lost`."""


def begin_attempt(store: Store, run_id: str, shard: int) -> int:
    """Record that a shard is started; returns how often it was started before.

    Checks for the marker first, because not every store refuses to write it twice. Two workers that start a shard at
    the same moment may count as one attempt; they write the same part.
    """
    attempt = 0
    while store.exists(_key(run_id, shard, attempt)) or not store.create(_key(run_id, shard, attempt), b""):
        attempt += 1
    return attempt


def lost_workers(store: Store, run_id: str) -> int:
    """How often shards of a run were restarted."""
    return sum(1 for key in _markers(store, run_id) if not key.endswith(".0"))


def forget_attempts(store: Store, run_id: str) -> None:
    """Remove the markers of a finished run."""
    store.delete_all(_markers(store, run_id))


def _markers(store: Store, run_id: str) -> list[str]:
    return [info.key for chunk in store.list(f"runs/{run_id}/attempts") for info in chunk]


def _key(run_id: str, shard: int, attempt: int) -> str:
    return f"runs/{run_id}/attempts/{shard:05d}.{attempt}"
