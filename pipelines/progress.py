"""Progress of long work on stderr: a rich bar on a terminal, a plain line every few seconds anywhere else."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_SECONDS = 10

log = logging.getLogger("rayscan")


class Advance(Protocol):
    """Call it with what was done since the last call."""

    def __call__(self, done: int) -> None:
        """Move on by `done`."""
        ...


@contextmanager
def progress(what: str, total: int, unit: str = "scans") -> Iterator[Advance]:
    """Show how far `what` is towards `total`; the caller advances it."""
    bar = _rich_bar if sys.stderr.isatty() else _plain_lines
    with bar(what, total, unit) as advance:
        yield advance


@contextmanager
def _rich_bar(what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console  # noqa: PLC0415 (only on a terminal)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def _plain_lines(what: str, total: int, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    reached = 0

    def advance(done: int) -> None:
        nonlocal reached, last
        reached += done
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS:
            last = now
            rate = reached / (now - started)
            log.info("%s: %d of %d %s, %.0f a second", what, reached, total, unit, rate)

    yield advance
