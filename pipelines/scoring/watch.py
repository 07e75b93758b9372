"""A process that hangs, even in C code that holds the interpreter, ends itself; its shard is begun again elsewhere."""

import faulthandler
import time
from collections.abc import Iterator
from typing import Final, TypeVar

T = TypeVar("T")

DEADLINE: Final = 180.0
"""Seconds in which the next film must be there: far above any store's retries."""
SET_EVERY: Final = 1.0
"""Seconds between two settings of the clock: each holds the interpreter's lock until a thread has come and gone. Set at
every eighth film it cost 0.25 ms a film of a process whose other threads decode."""


def watched(items: Iterator[T], deadline: float = DEADLINE) -> Iterator[T]:
    """The items; when the next one does not come within `deadline` seconds, this process exits with status 1.

    What it prints then goes to stderr, a worker's log, and names functions only.
    """
    set_again = 0.0
    try:
        while True:
            if (now := time.monotonic()) >= set_again:
                faulthandler.dump_traceback_later(deadline, exit=True, file=2)
                set_again = now + SET_EVERY
            try:
                item = next(items)
            except StopIteration:
                return
            yield item
    finally:
        faulthandler.cancel_dump_traceback_later()
