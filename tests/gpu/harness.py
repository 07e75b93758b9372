"""Runs checks one after the other, whatever fails, and tells all of it at the end.

Minutes on a GPU are dear: one run must say everything, so a check that fails prints its traceback and the next one
begins, and the figures are written to the file after each.
"""

import json
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

Figures = dict[str, Any]


class SkippedError(Exception):
    """A check that cannot be made here, and why."""


@dataclass
class Outcome:
    """The result of one check."""

    name: str
    status: str
    """`ok`, `failed`, `skipped` or `out of time`."""
    seconds: float = 0.0
    words: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass
class Harness:
    """Makes checks within `budget_s` of time, each within `limit_s`."""

    file: Path | None
    budget_s: float
    limit_s: int = 150
    outcomes: list[Outcome] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def check(self, name: str, make: Callable[[Figures], None]) -> bool:
        """Make one check, which fills in its figures and raises where it fails; whether it passed."""
        outcome = Outcome(name, "ok")
        self.outcomes.append(outcome)
        left = self.budget_s - (time.perf_counter() - self.begun)
        if left < 5:
            outcome.status, outcome.words = "out of time", f"the budget of {self.budget_s:.0f} s is spent"
            return self._told(outcome)
        print(f"\n== {name}", flush=True)
        started = time.perf_counter()
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(int(min(self.limit_s, left)))
        try:
            make(outcome.figures)
        except SkippedError as reason:
            outcome.status, outcome.words = "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 - the next check is made whatever this one raises
            traceback.print_exc()
            outcome.status, outcome.words = "failed", f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            signal.alarm(0)
        outcome.seconds = round(time.perf_counter() - started, 1)
        return self._told(outcome)

    def summary(self) -> int:
        """Print a table of all checks; the exit code."""
        print("\n" + "=" * 100)
        for outcome in self.outcomes:
            print(f"{outcome.status:<12} {outcome.seconds:7.1f} s  {outcome.name:<34} {outcome.words[:160]}")
        bad = [outcome for outcome in self.outcomes if outcome.status not in {"ok", "skipped"}]
        took = time.perf_counter() - self.begun
        print(f"{len(self.outcomes) - len(bad)} of {len(self.outcomes)} passed or were skipped, {took:.0f} s in all")
        return 1 if bad else 0

    def _told(self, outcome: Outcome) -> bool:
        for key, value in outcome.figures.items():
            print(f"   {key}: {json.dumps(value, default=str)}", flush=True)
        print(f"-> {outcome.status} {outcome.seconds:.1f} s {outcome.words}", flush=True)
        if self.file is not None:
            self.file.write_text(json.dumps([vars(made) for made in self.outcomes], indent=1, default=str))
        return outcome.status == "ok"


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the check took too long")


def require(holds: bool, words: str) -> None:
    """Raise `AssertionError` with these words unless it holds: assert would say nothing of the figures."""
    if not holds:
        raise AssertionError(words)
