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
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.gate.checks import check_pixels, check_tags
from models.spec import Preprocessing
from models.statistics.fingerprint import grey_statistics
from pipelines.contracts import Reason
from pipelines.decoding.decode import Scan, decode
from pipelines.decoding.fetch import fetch
from pipelines.decoding.isolated import IsolatedDecoder
from pipelines.errors import IncompleteError, ScanError
from pipelines.scoring.quarantine import Quarantine, Refusal, StoreDownError

AHEAD: Final = 48
"""Films read ahead of inference, at least; bounds an actor's memory."""
MOST_THREADS: Final = 64
FAILURES_IN_A_ROW: Final = 32
"""Consecutive scans that the store fails to deliver before the run stops."""
_STORE_FAILS: Final = {Reason.STORAGE_ERROR, Reason.ACCESS_DENIED}

Decoder = Callable[[bytes], Scan]


@dataclass(frozen=True, kw_only=True)
class FilmResult:
    """The result of fetching and decoding one scan: pixels, or the reason there are none."""

    pixels: npt.NDArray[np.uint8] | None = None
    reason: Reason | None = None
    grey: tuple[float, float] | None = None
    """Mean and standard deviation of the grey levels, if the film was decoded."""
    size: int = 0
    """Bytes fetched."""
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    told: str = ""
    """What the store said if it did not deliver the scan; empty for a scan in quarantine, which was not asked for."""


class FilmReader:
    """Reads the films of shards in as many threads as keep a core busy.

    Decoders release the interpreter's lock, so a few threads fill a core while the store answers quickly. If the caller
    waited for films while the core was idle, the next shard gets twice the threads, up to MOST_THREADS.
    """

    def __init__(self, preprocessing: Preprocessing, *, threads: int, quarantine: Quarantine | None = None) -> None:
        self.threads = threads
        self._preprocessing = preprocessing
        self._quarantine = quarantine
        self._refusals: list[Refusal] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch-decode")

    def read(self, rows: pa.Table) -> Iterator[FilmResult]:
        """The films of a plan's rows, in their order. Raises `IncompleteError` if the store keeps failing."""
        started, cpu, waited = time.perf_counter(), time.process_time(), 0.0
        for film, seconds in self._ahead(self._pool, self._decode, rows, max(AHEAD, 2 * self.threads)):
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
            closing(IsolatedDecoder(self._preprocessing)) as decoder,
            ThreadPoolExecutor(1, thread_name_prefix="isolated") as pool,
        ):
            for film, _ in self._ahead(pool, decoder, rows, AHEAD):
                yield film

    def _decode(self, data: bytes) -> Scan:
        return decode(data, self._preprocessing)

    def _ahead(
        self, pool: ThreadPoolExecutor, decoder: Decoder, rows: pa.Table, ahead: int
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
            for uri, etag in zip(rows["uri"].to_pylist(), rows["etag"].to_pylist(), strict=True):
                waiting.append((uri, pool.submit(self._read, uri, etag, decoder)))
                if len(waiting) > ahead:
                    yield take()
            while waiting:
                yield take()
        finally:
            for _, future in waiting:
                future.cancel()

    def _read(self, uri: str, etag: str, decoder: Decoder) -> FilmResult:
        corner = self._quarantine and self._quarantine.corner_of(uri)
        return FilmResult(reason=corner.reason) if corner else read_film(uri, etag, decoder)

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


def read_film(uri: str, etag: str, decoder: Decoder) -> FilmResult:
    """Fetch, decode and check one scan. A fault in the scan or in fetching it becomes the film's reason."""
    pixels, grey, reason, size, told = None, None, None, 0, ""
    started = fetched = time.perf_counter()
    try:
        data = fetch(uri, etag)
        size = len(data)
        fetched = time.perf_counter()
        scan = decoder(data)
        grey = grey_statistics(scan.pixels)
        refusal = check_tags(scan.tags) or check_pixels(scan.pixels)
        reason, pixels = (Reason(refusal), None) if refusal else (None, scan.pixels)
    except ScanError as error:
        reason = error.reason
        if reason in _STORE_FAILS:  # what a decoder says of a file may quote it
            told = str(error.__cause__).removeprefix(f"{uri}: ")
    ended = time.perf_counter()
    if not size:  # the fetch failed or returned nothing
        fetched = ended
    return FilmResult(
        pixels=pixels,
        reason=reason,
        grey=grey,
        size=size,
        fetch_seconds=fetched - started,
        decode_seconds=ended - fetched,
        told=told,
    )


def _failing(refusals: list[Refusal]) -> str:
    reason = refusals[-1].reason
    remedy = "check the credentials" if reason is Reason.ACCESS_DENIED else "check that the store is up"
    return (
        f"{refusals[0].uri.rpartition('/')[0]}: {FAILURES_IN_A_ROW} scans in a row could not be fetched ({reason});"
        f" {refusals[-1].told}; {remedy},"
        " then run the same command again: it continues where this run stopped"
    )
