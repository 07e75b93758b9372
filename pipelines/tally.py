"""Counts scans while their shards are still in work, so that the progress bar moves before the first shard ends.

Ray Data gives the driver one row per shard, at its end. So the workers report to a small actor how far they are, at
most twice a second, and the driver asks it. It costs one process on the driver's node. Alternatives refused: shards of
a few scans (a part and a marker each), and Ray's internal key-value store (no public interface).

The count is only for display: if the actor is lost, it continues by whole shards, and the work goes on.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pipelines.progress import Advance

T = TypeVar("T")

REPORT_SECONDS: Final = 0.5
"""Seconds between two reports of a worker, and between two questions of the driver."""
ANSWER_SECONDS: Final = 30.0
"""Seconds the driver waits for an answer: the actor's process may start slowly on a busy machine."""

log = logging.getLogger("rayscan")


class Tally:
    """The actor: scans read so far of each shard reported on since the last `take`."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}

    def report(self, shard: int, read: int) -> None:
        """Note that `read` scans of this shard have been read."""
        self._read[shard] = read

    def take(self) -> dict[int, int]:
        """The reports since the last call: shard -> scans read."""
        read, self._read = self._read, {}
        return read


@dataclass(frozen=True)
class Reporter:
    """A worker's side of the count. Picklable; without a tally it reports nothing."""

    tally: Any = None
    """Handle of the `Tally` actor."""

    def counted(self, shard: int, scans: Iterable[T]) -> Iterator[T]:
        """Pass on the scans of one shard as they are read, and report their number."""
        due = 0.0
        for read, scan in enumerate(scans, 1):
            if self.tally is not None and (now := time.monotonic()) >= due:
                self.tally.report.remote(shard, read)
                due = now + REPORT_SECONDS
            yield scan


SILENT: Final = Reporter()


class Count:
    """The driver's side: scans read of all shards, ended and in work."""

    def __init__(self, advance: Advance, reporter: Reporter) -> None:
        self.reporter = reporter
        """For the workers."""
        self._advance = advance
        self._lock = threading.Lock()
        self._under_way: dict[int, int] = {}
        self._ended: set[int] = set()
        self._scans_ended = 0
        self._shown = 0

    def add(self, read: dict[int, int]) -> None:
        """Take the workers' reports: shard -> scans read."""
        with self._lock:
            self._under_way |= {shard: scans for shard, scans in read.items() if shard not in self._ended}
            self._show()

    def end(self, shard: int, scans: int) -> None:
        """Note that a shard ended, with this many scans."""
        with self._lock:
            self._ended.add(shard)
            self._under_way.pop(shard, None)
            self._scans_ended += scans
            self._show()

    def _show(self) -> None:
        """A shard that is restarted because its worker died counts from 0 again; the bar does not go back."""
        reached = self._scans_ended + sum(self._under_way.values())
        if reached > self._shown:
            self._advance(reached - self._shown)
            self._shown = reached


@contextmanager
def counting(advance: Advance, *, within_shards: bool = True) -> Iterator[Count]:
    """Count scans as they are read while the block runs; by whole shards if Ray is not initialised, or on request.

    Where shards end within seconds, the process of the actor would only delay the first of them.
    """
    import ray  # noqa: PLC0415 (modules that use this are also imported without Ray)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    # Without Ray, creating an actor would start it, but not as `cluster/session.py` does.
    if not (within_shards and ray.is_initialized()):
        yield Count(advance, SILENT)
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    tally: Any = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=here).remote()
    count = Count(advance, Reporter(tally))
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(REPORT_SECONDS):
            try:
                count.add(ray.get(tally.take.remote(), timeout=ANSWER_SECONDS))
            except ray.exceptions.RayError as error:
                log.debug("progress is counted by whole shards from here on: %s", error)
                return

    asking = threading.Thread(target=ask, name="tally", daemon=True)
    asking.start()
    try:
        yield count
    finally:
        ended.set()
        ray.kill(tally)
        asking.join()
