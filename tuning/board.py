"""A search on the terminal: the trials under way, the best so far, the time left. Elsewhere the log tells it all."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial under way."""

    number: int
    model: str
    epoch: int
    """Epochs done."""
    epochs: int
    """At most."""
    auc: float | None
    """Best so far; None before the first epoch's end."""
    seconds: float
    """Since it began, in this run."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a search stands."""

    running: tuple[Running, ...]
    counts: Mapping[str, int]
    """Trials of the whole study that ended `complete`, `pruned`, `failed`."""
    planned: float
    """Infinite where only the time is limited."""
    best: str | None
    """In words; None before there is one."""
    seconds_left: float | None
    """At the pace so far, or until the time is up; None where nothing is known yet."""


Board = Callable[[Standing], None]
"""Shows how a search stands now."""


def no_board(standing: Standing) -> None:
    """Where there is no terminal: the log has a line for each trial."""


@contextmanager
def board() -> Iterator[Board]:
    """What shows the search while the block runs: a table that is drawn anew on a terminal, else nothing.

    Lines that are logged meanwhile stand above it.
    """
    if not sys.stderr.isatty():
        yield no_board
        return
    from rich.console import Console  # noqa: PLC0415 (only on a terminal)
    from rich.live import Live  # noqa: PLC0415

    handlers = [h for h in logging.getLogger("rayscan").handlers if isinstance(h, logging.StreamHandler)]
    with Live(console=Console(stderr=True), transient=True, redirect_stdout=False) as live:
        streams = [handler.setStream(sys.stderr) for handler in handlers]  # which Live has replaced by its own
        try:
            yield lambda standing: live.update(picture(standing))
        finally:
            for handler, stream in zip(handlers, streams, strict=True):
                if stream is not None:
                    handler.setStream(stream)


def picture(standing: Standing) -> "Group":
    """One row for each trial under way; below them the search as a whole."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    ended = sum(standing.counts.values())
    words = [in_words(ended, standing.planned)]
    words += [f"{count} {status}" for status, count in standing.counts.items() if count and status != "complete"]
    words.append(f"best {standing.best}" if standing.best else "none ended yet")
    if standing.seconds_left is not None:
        words.append(f"{_clock(standing.seconds_left)} left")
    table = Table(box=None, pad_edge=False)
    for heading in ("trial", "model", "epoch", "AUC", "time"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for trial in standing.running:
        table.add_row(
            str(trial.number),
            trial.model,
            f"{trial.epoch}/{trial.epochs}",
            "" if trial.auc is None else f"{trial.auc:.4f}",
            _clock(trial.seconds),
        )
    return Group(table, Text(" · ".join(words)))


def in_words(ended: int, planned: float) -> str:
    """How many trials there are of those that are to be."""
    return f"{ended} trials" if math.isinf(planned) else f"{ended} of {planned:.0f} trials"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
