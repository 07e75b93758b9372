"""Says when a run waits for CPUs or GPUs, and who has them: a night behind a search was silent for a minute and a half.

An actor without a process waits; one that loads its model has a process and does not. Where there is room, the process
is only being started, and that is worth no line. The places are read from Ray's control store (`pipelines/claims.py`),
because Ray Data itself says nothing.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pipelines.claims import Claim, claims, job_names, own_job, sizes

log = logging.getLogger("rayscan")

SILENT_SECONDS: Final = 5.0
"""How long actors may wait before it is said; also the time between two looks."""
AGAIN_SECONDS: Final = 60.0
"""Time between two lines as long as nothing can be done at all."""


class Waiting:
    """What to say about the places of one job's actors, look by look."""

    def __init__(self, job: str, names: Callable[[set[str]], Mapping[str, str]]) -> None:
        self._job = job
        self._names = names
        """Finds out what jobs call themselves."""
        self._since: float | None = None
        """When actors were first seen without a place."""
        self._told: float | None = None
        self._stalled = False
        """Whether the last line said that nothing can be done."""

    def look(self, found: Sequence[Claim], have: tuple[float, float], now: float) -> str | None:
        """The line to say at the time `now` (seconds), if any; the cluster has so many CPUs and GPUs."""
        own = [claim for claim in found if claim.job == self._job]
        waiting = [claim for claim in own if claim.node is None]
        if not waiting:
            told, self._since, self._told = self._told, None, None
            return f"goes on: all {len(own)} actors have their place" if told is not None and own else None
        self._since = now if self._since is None else self._since
        placed = len(own) - len(waiting)
        stalled = any(all(claim.node is None for claim in own if claim.name == one.name) for one in waiting)
        if self._told is None:
            due = now - self._since >= (AGAIN_SECONDS if _fit(found, have) else SILENT_SECONDS)
        elif self._stalled and not stalled:
            self._stalled = False
            return f"goes on: {placed} of {len(own)} actors have their place"
        else:
            due = stalled and now - self._told >= AGAIN_SECONDS
        if not due:
            return None
        self._told, self._stalled = now, stalled
        start = f"{placed} of {len(own)} actors are at work; waiting" if placed else "waiting"
        return f"{start} for {_amount(waiting)}{self._holders(found)}"

    def _holders(self, found: Sequence[Claim]) -> str:
        held: dict[str, list[Claim]] = {}
        for claim in found:
            if claim.job != self._job and claim.node is not None:
                held.setdefault(claim.job, []).append(claim)
        if not held:
            return ", which no other job's actors hold: the cluster has to grow"
        names = self._names(set(held))
        return ", held by " + ", ".join(f"{names.get(job, job)} ({_amount(held[job])})" for job in sorted(held))


def _fit(found: Sequence[Claim], have: tuple[float, float]) -> bool:
    """Whether the cluster has room for all of them at once."""
    return sum(claim.cpus for claim in found) <= have[0] and sum(claim.gpus for claim in found) <= have[1]


def _amount(of: Sequence[Claim]) -> str:
    """`2 CPUs and 1 GPU`."""
    sums = Counter({"CPU": sum(claim.cpus for claim in of), "GPU": sum(claim.gpus for claim in of)})
    return " and ".join(f"{n:g} {what}{'' if n == 1 else 's'}" for what, n in sums.items() if n) or "nothing"


@contextmanager
def told_when_waiting(placed: Callable[[], None]) -> Iterator[None]:
    """Log the lines while the block runs; `placed` is called once every actor has its place."""
    ended = threading.Event()

    def watch() -> None:
        waiting = Waiting(job := own_job(), job_names)
        while not ended.wait(SILENT_SECONDS):
            found = claims()
            if found is None:
                return
            if line := waiting.look(found, sizes(), time.monotonic()):
                log.info(line)
            own = [claim for claim in found if claim.job == job]
            if own and all(claim.node is not None for claim in own):
                placed()

    watching = threading.Thread(target=watch, name="waiting", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()
