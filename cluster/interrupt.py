"""Ctrl-C and SIGTERM, told to the code that runs instead of ending the process wherever it stands."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

TERMINATED: Final = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended in good order, as a shell gives it."""


class Interrupt:
    """What SIGINT and SIGTERM do inside `installed()`: the first raises, the others do nothing."""

    def __init__(self) -> None:
        self.seen: int | None = None
        self.holding = False
        self.is_installed = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal, as Python's handlers do."""
        first, self.seen = self.seen is None, self.seen or signum
        if first and not self.holding:
            self._stop()

    def _stop(self) -> None:
        if self.seen == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both inside the block, where Python allows it: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        self.is_installed = True
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Handle SIGTERM again: Ray's start has put a handler of its own in place, which aborts the process."""
        if self.is_installed:
            signal.signal(signal.SIGTERM, self)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a first signal inside the block until the block ends."""
        seen_before, self.holding = self.seen, True
        try:
            yield
        finally:
            self.holding = False
        if self.seen and not seen_before:
            self._stop()
