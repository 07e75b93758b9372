"""Ends a process that hangs, even in C code that holds the interpreter's lock; its shard is restarted elsewhere."""

import faulthandler
import time
from collections.abc import Iterator
from typing import Final, TypeVar

T = TypeVar("T")

DEADLINE: Final = 180.0
"""Seconds within which the next film must arrive: far longer than any store's retries."""
RESTART_EVERY: Final = 1.0
"""Seconds between two restarts of the timer, each of which holds the interpreter's lock while a thread starts and ends.
Restarted at every eighth film it cost 0.25 ms per film in a process whose other threads decode."""


def watched(items: Iterator[T], deadline: float = DEADLINE) -> Iterator[T]:
    """Pass on the items; if the next one does not arrive within `deadline` seconds, this process exits with status 1.

    Before that it prints a traceback, which names functions only, to stderr, the worker's log.
    """
    next_restart = 0.0
    try:
        while True:
            if (now := time.monotonic()) >= next_restart:
                faulthandler.dump_traceback_later(deadline, exit=True, file=2)
                next_restart = now + RESTART_EVERY
            try:
                item = next(items)
            except StopIteration:
                return
            yield item
    finally:
        faulthandler.cancel_dump_traceback_later()
