"""A search on the terminal: the trials under way, the best so far, the time left. Elsewhere the log has it all.

A picture is a function of a `Standing`, and the ledger keeps the latest one. So what draws looks at the ledger, and the
ledger, which Ray Tune pickles with all that it holds, knows no terminal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

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


MOST_ROWS: Final = 12
"""Trials under way that are shown one by one: on a large cluster there are more than a terminal has lines."""


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
    for trial in standing.running[:MOST_ROWS]:
        table.add_row(
            str(trial.number),
            trial.model,
            f"{trial.epoch}/{trial.epochs}",
            "" if trial.auc is None else f"{trial.auc:.4f}",
            _clock(trial.seconds),
        )
    if len(standing.running) > MOST_ROWS:
        words.insert(0, f"{len(standing.running) - MOST_ROWS} more under way")
    return Group(table, Text(" · ".join(words)))


def in_words(ended: int, planned: float) -> str:
    """How many trials there are of those that are to be."""
    return f"{ended} trials" if math.isinf(planned) else f"{ended} of {planned:.0f} trials"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
