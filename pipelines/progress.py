"""Progress of long work on stderr: a bar on a terminal, a plain line every few seconds anywhere else.

Only one thing is drawn at a time. Meanwhile rich replaces `sys.stderr` and prints what is written there above the
picture, so a log handler must look up `sys.stderr` for each line (`cluster/output.py`) and not keep the first stream.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PLAIN_SECONDS = 10
ROOMY = 60
"""Terminal columns from which on there is room for the time beside the bar."""

log = logging.getLogger("rayscan")


class Advance(Protocol):
    """Called with the amount of work done since the last call."""

    def __call__(self, done: int) -> None:
        """Move on by `done`."""
        ...


@contextmanager
def progress(what: str, total: int, unit: str = "scans") -> Iterator[Advance]:
    """Show how far `what` is towards `total`; the caller advances it, from any thread."""
    console = terminal()
    bar = _plain_lines(what, total, unit) if console is None else _rich_bar(console, what, total, unit)
    with bar as advance:
        yield advance


@contextmanager
def live(picture: Callable[[], "RenderableType"]) -> Iterator[None]:
    """On a terminal, redraw the picture four times a second while the block runs, and erase it at the end."""
    console = terminal()
    if console is None:
        yield
        return
    from rich.live import Live  # noqa: PLC0415 (only on a terminal)

    with Live(get_renderable=picture, console=console, transient=True, redirect_stdout=False):
        yield


def terminal() -> "Console | None":
    """The terminal on stderr; None if stderr is not a terminal, or cannot redraw (TERM=dumb)."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return None
    from rich.console import Console  # noqa: PLC0415 (only on a terminal)

    size: dict[str, Any] = {}
    if not (os.isatty(0) or os.isatty(1)):  # rich asks these, and descriptor 2, which may be Ray's log by now
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
        size = {"width": columns or None, "height": rows or None}  # 0: the terminal does not know
    return Console(stderr=True, highlight=False, **size)


@contextmanager
def _rich_bar(console: "Console", what: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.progress import (  # noqa: PLC0415 (only on a terminal)
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column  # noqa: PLC0415

    def text(words: str) -> TextColumn:
        return TextColumn(words, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))

    columns: list[ProgressColumn] = [text(what), BarColumn(bar_width=None, table_column=Column(ratio=1))]
    columns.append(MofNCompleteColumn(table_column=Column(no_wrap=True)))
    if console.width >= ROOMY:
        elapsed, remaining = TimeElapsedColumn(), TimeRemainingColumn(compact=True)
        columns += [text(unit), elapsed, remaining]
    with Progress(*columns, console=console, expand=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
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
