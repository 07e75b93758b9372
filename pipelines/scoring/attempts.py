"""How often a shard was begun: what tells a worker that an earlier one died on it.

    runs/<run_id>/attempts/00017.0     written when shard 17 is begun for the first time, .1 the second time, …

A shard is begun again because a scan in it killed its worker, or because the worker, its node or the driver died for
another reason; from outside they look alike. So a second attempt takes each scan for the possible culprit, and after
MAX_ATTEMPTS the shard is given up for this run: a crash cannot go round for ever.
"""

from typing import Final

from pipelines.storage import Store

MAX_ATTEMPTS: Final = 3
"""A shard's scans are read in isolation in attempts 1 to MAX_ATTEMPTS; after that they are `failed`, worker_lost."""


def begin_attempt(store: Store, run_id: str, shard: int) -> int:
    """Note that a shard is begun, and return how often it was before.

    Looks first, because not every store refuses to write a number twice. Two workers on one shard at the same moment
    may both count as the same attempt; they write the same part.
    """
    attempt = 0
    while store.exists(_key(run_id, shard, attempt)) or not store.create(_key(run_id, shard, attempt), b""):
        attempt += 1
    return attempt


def lost_workers(store: Store, run_id: str) -> int:
    """How many shards of a run were begun again, each time counted."""
    return sum(1 for key in _markers(store, run_id) if not key.endswith(".0"))


def forget_attempts(store: Store, run_id: str) -> None:
    """Remove a finished run's notes."""
    store.delete_all(_markers(store, run_id))


def _markers(store: Store, run_id: str) -> list[str]:
    return [info.key for chunk in store.list(f"runs/{run_id}/attempts") for info in chunk]


def _key(run_id: str, shard: int, attempt: int) -> str:
    return f"runs/{run_id}/attempts/{shard:05d}.{attempt}"
