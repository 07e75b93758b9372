"""Long work in a thread of its own, so that Ctrl-C ends it within a second or two.

In the main thread a Ctrl-C waits until DuckDB or a store's answer returns to Python: seconds of a plan, a minute of a
store's retries. So the work runs beside the main thread, which only waits. The first Ctrl-C asks the work to end: loops
ask `check` once per chunk, and what runs in C++ is told by a callback. Work that does not end within PATIENCE is
abandoned; `was_abandoned` tells the command line to leave without waiting for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

PATIENCE: Final = 1.0
"""Seconds for work that was asked to end."""


class StoppedError(Exception):
    """Raised in the work after it was asked to end; nobody sees it but the work."""


class Stop:
    """Tells work that it shall end."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def ask(self) -> None:
        """Ask the work to end."""
        with self._lock:
            self._asked.set()
            for callback in self._callbacks:
                callback()

    def check(self) -> None:
        """Raise `StoppedError` if the work was asked to end."""
        if self._asked.is_set():
            raise StoppedError

    @contextmanager
    def calling(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `interrupt` ends what keeps it busy; it is called from another thread."""
        self.check()
        with self._lock:
            self._callbacks.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(interrupt)


def never() -> Stop:
    """A stop that nobody will ask for."""
    return Stop()


_abandoned = threading.Event()


def was_abandoned() -> bool:
    """Whether this process has left work behind that would not end."""
    return _abandoned.is_set()


def stoppable(work: Callable[[Stop], T], name: str) -> T:
    """The result of `work`, or what it raises. An interrupt of the caller asks the work to end before it goes on."""
    stop, ended = Stop(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(stop))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller)
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        ended.wait()
    except BaseException:  # KeyboardInterrupt, or SystemExit after SIGTERM
        stop.ask()
        if not ended.wait(PATIENCE):
            _abandoned.set()
        raise
    if errors:
        raise errors[0]
    return results[0]
