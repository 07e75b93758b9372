"""From the rows of a plan to films: fetched, decoded and checked ahead of inference.

A fault of one scan becomes the film's reason, never an exception. If the store fails for one scan after another, either
a folder of the archive cannot be read and is left out (`quarantine.py`), or the store is down: then the run stops,
instead of writing a night of `failed` rows one timeout at a time.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import BoundedSemaphore
from typing import Final

import pyarrow as pa

from pipelines.contracts import Reason
from pipelines.decoding.film import FilmResult, ReadSettings, read_film
from pipelines.decoding.isolated import IsolatedReader
from pipelines.errors import IncompleteError
from pipelines.scoring.quarantine import Quarantine, Refusal, StoreDownError

AHEAD: Final = 48
"""Films read ahead of inference, at least; bounds an actor's memory."""
MOST_THREADS: Final = 64
SLOTS: Final = 2
"""Films decoded at a time by an actor, which has one core: while one holds the interpreter's lock, one decodes."""
FAILURES_IN_A_ROW: Final = 32
"""Consecutive scans that the store fails to deliver before the run stops."""
_STORE_FAILS: Final = {Reason.STORAGE_ERROR, Reason.ACCESS_DENIED}

Reader = Callable[[str, str, int], FilmResult]
"""Of a scan's URI, etag and bytes."""


class FilmReader:
    """Reads the films of shards in as many threads as keep a core busy.

    Threads wait for the store; of those whose bytes have come, only `slots` decode at a time, which a core can do. If
    the caller waited for films while the core was idle, the next shard gets twice the threads, up to MOST_THREADS.
    """

    def __init__(
        self,
        settings: ReadSettings,
        *,
        threads: int,
        slots: int = SLOTS,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.threads = threads
        self._settings = settings
        self._slots = BoundedSemaphore(slots)
        self._quarantine = quarantine
        self._refusals: list[Refusal] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch-decode")

    def read(self, rows: pa.Table) -> Iterator[FilmResult]:
        """The films of a plan's rows, in their order. Raises `IncompleteError` if the store keeps failing."""
        started, cpu, waited = time.perf_counter(), time.process_time(), 0.0
        for film, seconds in self._ahead(self._pool, self._read_here, rows, max(AHEAD, 2 * self.threads)):
            waited += seconds
            yield film
        elapsed = time.perf_counter() - started
        busy = (time.process_time() - cpu) / elapsed  # of one core, which is what an actor has
        if waited > 0.2 * elapsed and busy < 0.7 and self.threads < MOST_THREADS and rows.num_rows >= AHEAD:
            self._pool.shutdown()
            self.threads = min(MOST_THREADS, 2 * self.threads)
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="fetch-decode")

    def read_isolated(self, rows: pa.Table) -> Iterator[FilmResult]:
        """`read`, but films are decoded one by one in a child process, which a film may kill."""
        with (
            closing(IsolatedReader(self._settings)) as reader,
            ThreadPoolExecutor(1, thread_name_prefix="isolated") as pool,
        ):
            for film, _ in self._ahead(pool, reader, rows, AHEAD):
                yield film

    def _read_here(self, uri: str, etag: str, size: int) -> FilmResult:
        return read_film(uri, etag, size, self._settings, self._slots)

    def _ahead(
        self, pool: ThreadPoolExecutor, reader: Reader, rows: pa.Table, ahead: int
    ) -> Iterator[tuple[FilmResult, float]]:
        """Films in order, with the seconds the caller waited for each, while the next `ahead` films are in work."""
        waiting: deque[tuple[str, Future[FilmResult]]] = deque()

        def take() -> tuple[FilmResult, float]:
            started = time.perf_counter()
            uri, future = waiting.popleft()
            film = future.result()
            self._watch(uri, film)
            return film, time.perf_counter() - started

        try:
            for uri, etag, size in zip(*(rows[name].to_pylist() for name in ("uri", "etag", "size")), strict=True):
                waiting.append((uri, pool.submit(self._read, reader, uri, etag, size)))
                if len(waiting) > ahead:
                    yield take()
            while waiting:
                yield take()
        finally:
            for _, future in waiting:
                future.cancel()

    def _read(self, reader: Reader, uri: str, etag: str, size: int) -> FilmResult:
        corner = self._quarantine and self._quarantine.corner_of(uri)
        return FilmResult(reason=corner.reason) if corner else reader(uri, etag, size)

    def _watch(self, uri: str, film: FilmResult) -> None:
        """Count refusals in a row, across shards, since a shard may hold fewer scans than FAILURES_IN_A_ROW."""
        if film.reason not in _STORE_FAILS:
            self._refusals.clear()
            return
        if self._quarantine and self._quarantine.corner_of(uri):
            return
        self._refusals.append(Refusal(uri=uri, reason=film.reason, told=film.told))
        if len(self._refusals) < FAILURES_IN_A_ROW:
            return
        try:
            if self._quarantine is None:
                raise StoreDownError
            self._quarantine.judge(self._refusals)
        except StoreDownError as error:
            raise IncompleteError(_failing(self._refusals)) from error
        self._refusals.clear()


def _failing(refusals: list[Refusal]) -> str:
    reason = refusals[-1].reason
    remedy = "check the credentials" if reason is Reason.ACCESS_DENIED else "check that the store is up"
    return (
        f"{refusals[0].uri.rpartition('/')[0]}: {FAILURES_IN_A_ROW} scans in a row could not be fetched ({reason});"
        f" {refusals[-1].told}; {remedy},"
        " then run the same command again: it continues where this run stopped"
    )
