"""A lease, so that one driver at a time works on the scores of one model.

    leases/model=<model_id>/00000007.json     create-only; the highest number is the current lease

Acquiring, renewing and releasing each create the next number, so of two drivers that try, one wins. The holder renews
every RENEW_SECONDS; a lease not renewed for TTL_SECONDS is free. Ages are measured with the store's clock, so the
clocks of machines do not matter.

The lease saves work; it is not what keeps the scores correct. Create-only parts with fixed names do that: a driver that
comes back after its lease was taken can only write the same parts, or fail. On a store without conditional put, two
drivers that start within the same second may both believe they hold the lease.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from pipelines.errors import AccessError, IncompleteError, NotFoundError, StorageError
from pipelines.storage import Store

log = logging.getLogger("rayscan")

TTL_SECONDS: Final = 60.0
RENEW_SECONDS: Final = 15.0
POLL_SECONDS: Final = 1.0
EVERY_MODEL: Final = "all"
_STORE_FAILS: Final = (StorageError, AccessError, NotFoundError)


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """One state of the lease."""

    number: int
    owner: str
    """Random; empty once released."""
    process: str | None
    """The owner's process, so that its death is noticed at once on the same machine."""
    age: float
    """Seconds since it was written, by the store's clock."""
    host: str | None = None
    """The owner's machine, for people."""


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """Who holds the scores of a model, as a bystander sees it."""

    held: bool
    """Whether somebody took it and has not given it back."""
    stale: bool
    """Held by one that died, or has not renewed it for TTL_SECONDS: the next run takes it over."""
    host: str | None
    pid: int | None
    age: float
    """Seconds since it was renewed or released."""


class Lease:
    """A lease that this process holds, or held."""

    def __init__(self, store: Store, folder: str, owner: str, number: int) -> None:
        self._store, self._folder, self._owner, self._number = store, folder, owner, number
        self._lost = threading.Event()
        self._released = threading.Event()
        self._renewed = time.monotonic()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def age(self) -> float:
        """Seconds since it was renewed."""
        return time.monotonic() - self._renewed

    @property
    def is_lost(self) -> bool:
        """Whether another driver may have taken the lease."""
        return self._lost.is_set() or self.age > TTL_SECONDS

    def check(self) -> None:
        """Raise `IncompleteError` if the lease is lost: another driver continues the work."""
        if self.is_lost:
            raise IncompleteError(
                f"{self._store.root}: another run has taken over, because this one did not renew its lease for"
                f" {TTL_SECONDS:.0f} s; that run continues with what is left"
            )

    def confirm(self) -> int:
        """Renew now and raise as `check` does; for a step that must not be taken after the lease has expired.

        Returns the number of this generation: whoever takes the lease over has a higher one.
        """
        with self._turn:
            self._renew_once()
            number = self._number
        self.check()
        return number

    def release(self) -> None:
        """Give up the lease."""
        self._released.set()
        self._thread.join()
        if self._lost.is_set():
            return
        try:
            _create(self._store, self._folder, self._number + 1, owner="", process=None)
            self._store.delete(_key(self._folder, self._number))
        except _STORE_FAILS as error:  # must not hide the error that ended the run
            log.warning("the lease could not be released; it expires in %.0f s: %s", TTL_SECONDS, error)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS) and not self._lost.is_set():
            with self._turn:
                try:
                    self._renew_once()
                except _STORE_FAILS as error:
                    # Tried again in the next round; `check` gives up after a whole TTL without success.
                    log.warning("the lease could not be renewed: %s", error)

    def _renew_once(self) -> None:
        asked = time.monotonic()
        if self._lost.is_set() or not _take(self._store, self._folder, self._number + 1, self._owner):
            self._lost.set()
            return
        self._store.delete(_key(self._folder, self._number))
        self._number += 1
        self._renewed = asked


def lease_state(store: Store, model_id: str) -> LeaseState | None:
    """Who holds the scores of a model; None if nobody ever did.

    Nothing is written, not even to read the store's clock: where it differs by a minute from this machine's, a live
    lease may look stale, or a stale one live.
    """
    found = []
    for name in (model_id, EVERY_MODEL):
        newest = _newest(store, f"leases/model={name}", datetime.now(UTC))
        if newest is not None:
            pid = int(newest.process.split()[2]) if newest.process else None
            held = bool(newest.owner)
            stale = held and _is_free(newest)
            found.append(LeaseState(held=held, stale=stale, host=newest.host, pid=pid, age=max(0.0, newest.age)))
    return min(found, key=lambda state: (not state.held, state.stale), default=None)


def lease_of_scores(
    store: Store, model_id: str, *, conditional: bool, wait: float = 0.0
) -> AbstractContextManager[Lease]:
    """The lease to hold while the scores of a model are changed: `held_lease`, of that model.

    On a store without conditional put two processes that commit to the table at once lose commits of each other, so
    there all models share one lease.
    """
    return held_lease(store, model_id if conditional else EVERY_MODEL, wait=wait)


@contextmanager
def held_lease(store: Store, model_id: str, *, wait: float = 0.0) -> Iterator[Lease]:
    """Hold the lease of a model's scores during the block.

    If another process holds it, watches for up to one TTL whether that process is alive. The lease of a dead holder is
    taken; a live one is waited for, up to `wait` seconds. Raises `IncompleteError` if it still holds the lease then.
    """
    lease = _acquire(store, f"leases/model={model_id}", wait)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(store: Store, folder: str, wait: float) -> Lease:
    owner, pause, started = token_hex(8), threading.Event(), time.monotonic()
    first: int | None = None
    while True:
        newest = _newest(store, folder)
        if newest is None or _is_free(newest):
            number = newest.number + 1 if newest else 1
            if _take(store, folder, number, owner):
                if newest:
                    store.delete(_key(folder, newest.number))
                return Lease(store, folder, owner, number)
            continue
        if first is None:
            first = newest.number
            log.info("another run holds the lease on %s; checking whether it is alive", store.root)
        if newest.number != first and time.monotonic() - started >= wait:
            raise IncompleteError(f"{store.root}: another run is at work here; wait until it ends, or use --wait")
        pause.wait(POLL_SECONDS)


def _is_free(generation: _Generation) -> bool:
    return not generation.owner or generation.age > TTL_SECONDS or _is_dead(generation.process)


def _take(store: Store, folder: str, number: int, owner: str) -> bool:
    """Create a generation; returns whether it is ours and the newest. One created too late is removed again.

    The check before matters on a store where `create` overwrites: a driver that was presumed dead must not take its
    lease back.
    """
    newest = _newest(store, folder)
    if newest is not None and newest.number >= number:
        return False
    if not _create(store, folder, number, owner=owner, process=_process()):
        return False
    newest = _newest(store, folder)
    if newest is not None and newest.number == number:
        return newest.owner == owner
    store.delete(_key(folder, number))
    return False


def _create(store: Store, folder: str, number: int, *, owner: str, process: str | None) -> bool:
    host = socket.gethostname() if owner else None
    return store.create(_key(folder, number), json.dumps({"owner": owner, "process": process, "host": host}).encode())


def _newest(store: Store, folder: str, now: datetime | None = None) -> _Generation | None:
    """The newest generation; its age is that at `now`, by default the store's own time."""
    infos = [info for chunk in store.list(folder) for info in chunk]
    if not infos:
        return None
    info = max(infos, key=lambda info: info.key)
    try:
        content: dict[str, Any] = json.loads(store.get(info.key))
    except NotFoundError:  # renewed since it was listed
        return _newest(store, folder, now)
    age = ((now or store.clock()) - info.modified).total_seconds()
    return _Generation(
        number=int(Path(info.key).stem),
        owner=content["owner"],
        process=content["process"],
        age=age,
        host=content.get("host"),
    )


def _key(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.json"


def _process() -> str | None:
    """Machine, id and start time of this process, on Linux; None elsewhere."""
    return _named(os.getpid())


def _named(pid: int) -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink().name
        # Field 22 of proc(5) stat, the start time, counted from behind the name in brackets.
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return f"{boot} {space} {pid} {start}"


def _is_dead(process: str | None) -> bool:
    """Whether this process certainly ran on this machine and no longer does."""
    here = _process()
    if process is None or here is None or process.split()[:2] != here.split()[:2]:
        return False
    return _named(int(process.split()[2])) != process
