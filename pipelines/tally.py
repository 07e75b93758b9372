"""Counts scans while their shards are still being worked on, so that a bar moves before the first shard ends.

Ray Data hands the driver one row a shard, at its end. So the workers tell a small actor how far they are, twice a
second at most, and the driver asks it. It costs one process, next to the driver. The alternatives refused: shards of a
few scans (a part and a marker each), and Ray's internal key-value store (no public interface).

What is counted is for people to look at: if the actor is lost, the count goes by whole shards, and the work goes on.
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
"""Between two reports of a worker, and between two questions of the driver."""
ANSWER_SECONDS: Final = 30.0
"""The tally's process may take a while to start on a busy machine; an answer later than that will not come."""

log = logging.getLogger("rayscan")


class Tally:
    """The actor: how many scans of each shard have been read, of the shards that somebody reported on lately."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}

    def report(self, shard: int, read: int) -> None:
        """So many scans of this shard have been read."""
        self._read[shard] = read

    def take(self) -> dict[int, int]:
        """What was reported since the last call: shard -> scans."""
        read, self._read = self._read, {}
        return read


@dataclass(frozen=True)
class Reporter:
    """What a worker reports through. Picklable; without a tally it reports nothing."""

    tally: Any = None
    """Handle of the `Tally` actor."""

    def counted(self, shard: int, scans: Iterable[T]) -> Iterator[T]:
        """The scans of one shard as they are read, reported on the way."""
        due = 0.0
        for read, scan in enumerate(scans, 1):
            if self.tally is not None and (now := time.monotonic()) >= due:
                self.tally.report.remote(shard, read)
                due = now + REPORT_SECONDS
            yield scan


SILENT: Final = Reporter()


class Count:
    """The driver's side: what has been read of all shards, those that have ended and those under way."""

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
        """Workers reported so many scans of these shards."""
        with self._lock:
            self._under_way |= {shard: scans for shard, scans in read.items() if shard not in self._ended}
            self._show()

    def end(self, shard: int, scans: int) -> None:
        """A shard has ended, with so many scans."""
        with self._lock:
            self._ended.add(shard)
            self._under_way.pop(shard, None)
            self._scans_ended += scans
            self._show()

    def _show(self) -> None:
        """A shard that is begun anew, as its worker died, counts from 0 again; the bar does not go back."""
        reached = self._scans_ended + sum(self._under_way.values())
        if reached > self._shown:
            self._advance(reached - self._shown)
            self._shown = reached


@contextmanager
def counting(advance: Advance) -> Iterator[Count]:
    """Count scans as they are read while the block runs; where Ray is not initialised, by whole shards."""
    import ray  # noqa: PLC0415 (what uses this is imported without Ray, too)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    if not ray.is_initialized():  # asked for an actor, Ray would start itself, and not as `cluster/session.py` does
        yield Count(advance, SILENT)
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    tally: Any = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=here).remote()
    count = Count(advance, Reporter(tally))
    over = threading.Event()

    def ask() -> None:
        while not over.wait(REPORT_SECONDS):
            try:
                count.add(ray.get(tally.take.remote(), timeout=ANSWER_SECONDS))
            except ray.exceptions.RayError as error:
                log.debug("progress is counted by whole shards from here: %s", error)
                return

    asking = threading.Thread(target=ask, name="tally", daemon=True)
    asking.start()
    try:
        yield count
    finally:
        over.set()
        ray.kill(tally)
        asking.join()
