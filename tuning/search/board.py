"""What people are shown of a search: the terminal's live picture, the log's lines, the metrics.

The picture is a function of a `Standing`, and the `Board` keeps the latest one. So what draws looks at the board, which
Ray Tune pickles together with the ledger: it knows no terminal.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from pipelines import telemetry
from tuning.study.records import TrialRecord, best_trial, count_statuses

if TYPE_CHECKING:
    from rich.console import Group

log = logging.getLogger("rayscan")


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
    """At the pace so far, or until the time is up; None if not known yet."""


class Board:
    """Says how a search stands, and announces each trial that ended. Holds nothing but values, as it is pickled."""

    def __init__(self, records: Sequence[TrialRecord], *, planned: float, deadline: float, metric: str) -> None:
        self.planned = planned
        self.deadline = deadline
        self.metric = metric
        self.inherited = len(records)
        self.opened = time.monotonic()
        self.shown = -math.inf
        self.warned = False
        self.standing = self._stand(records, ())
        """How the search stood when it was last shown."""

    def is_old(self) -> bool:
        """Whether `standing` is a second old or more."""
        return time.monotonic() - self.shown >= 1

    def show(self, records: Sequence[TrialRecord], running: Sequence[Running]) -> None:
        """Take note of how the search stands now."""
        self.shown = time.monotonic()
        telemetry.set_running(len(running))
        if (best := best_trial(records)) is not None:
            telemetry.set_best_value(best.result, metric=self.metric)
        self.standing = self._stand(records, running)

    def expect(self, model: str, epoch_seconds: float, epochs: int) -> None:
        """Warn, once, where a trial at this pace would not reach its last epoch even with all of the search's time."""
        budget = self.deadline - self.opened
        if epoch_seconds * epochs <= budget or self.warned:
            return
        self.warned = True
        log.warning(
            "at %.0f s an epoch, %d epochs of %s take %.0f minutes, and this search has %.0f: the time will cut off"
            " each such trial. Give a longer --time-budget, or more --cpus-per-trial: then fewer trials share the CPUs",
            epoch_seconds,
            epochs,
            model,
            epoch_seconds * epochs / 60,
            budget / 60,
        )

    def announce(self, record: TrialRecord, records: Sequence[TrialRecord]) -> None:
        """Log and count a trial that ended, the last of `records`."""
        best = best_trial(records)
        telemetry.count_trial(record.status)
        log.info(
            "trial %d %s%s %s: %s after %d epochs; best %s %s; %s%s",
            record.number,
            "baseline " if record.kind == "baseline" else "",
            record.model,
            record.status,
            record.error or f"AUC {record.auc:.4f}",
            record.epochs,
            self.metric,
            f"{best.result:.4f} (trial {best.number})" if best else "none yet",
            in_words(len(records), self.planned),
            "" if math.isinf(self.deadline) else f", {max(0.0, self.deadline - time.monotonic()):.0f} s left",
        )

    def _stand(self, records: Sequence[TrialRecord], running: Sequence[Running]) -> Standing:
        best = best_trial(records)
        now = time.monotonic()
        ran = len(records) - self.inherited
        pace = (now - self.opened) / ran if ran else math.inf
        left = min(self.deadline - now, pace * (self.planned - len(records)))
        return Standing(
            running=tuple(running),
            counts=count_statuses(records),
            planned=self.planned,
            best=None if best is None else f"{self.metric} {best.result:.4f}, {best.model}, trial {best.number}",
            seconds_left=None if math.isinf(left) else max(0.0, left),
        )


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
