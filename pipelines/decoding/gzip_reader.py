"""Any range of what a gzip file inflates to, read from a store without unpacking it to disk.

The first pass goes from the start and leaves a copy of the inflater's state (40 kB) every STEP bytes; from then on a
range costs what lies between it and the copy before it. So a process inflates a .tar.gz of any size once, plus at most
STEP bytes for each member, in whatever order they are asked for; and each process of a run does that for itself, so a
.zip or a plain .tar, which are read by range at once, is the better container.
"""

import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from pipelines.contracts import Reason
from pipelines.errors import ScanError

STEP: Final = 16 << 20
"""Inflated bytes between two states that are kept; doubled when they become many."""
MOST_STATES: Final = 256
BLOCK: Final = 4 << 20
"""Bytes fetched at a time."""
PIECE: Final = 16 << 10
"""Bytes inflated at a time, to at most 1,032 times as many."""


class AbsurdRatioError(ScanError):
    """The file inflates to more than any archive of films does."""

    def __init__(self) -> None:
        super().__init__(Reason.TOO_LARGE)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class GzipReader:
    """Reads ranges of the inflated file; safe to use from several threads, one at a time."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, *, most_ratio: int, unsuspicious: int) -> None:
        """`read(start, length)` gives bytes of the file, which has `size`."""
        self._fetch = read
        self._size = size
        self._most_ratio = most_ratio
        self._unsuspicious = unsuspicious
        self._step = STEP
        self._states: list[tuple[int, int, Any]] = [(0, 0, zlib.decompressobj(wbits=31))]
        """(inflated, read, inflater) in order."""
        self._block = (0, b"")
        self._lock = threading.Lock()

    def read(self, start: int, length: int) -> bytes:
        """A range, shorter at the end of the file.

        Raises `ScanError` for a file that is damaged or cut off before, `AbsurdRatioError` for a bomb.
        """
        with self._lock:
            at = bisect_right(self._states, start, key=lambda state: state[0]) - 1
            made, read, kept = self._states[at]
            inflater = kept.copy()
            found = bytearray()
            while made < start + length:
                piece = self._piece(read)
                if not piece or (inflater.eof and not piece.strip(b"\0")):  # the end, or padding behind it
                    break
                if inflater.eof:
                    inflater = zlib.decompressobj(wbits=31)
                try:
                    out = inflater.decompress(piece)
                except zlib.error as error:
                    raise ScanError(Reason.CORRUPT) from error
                read += len(piece) - len(inflater.unused_data)
                skip = max(0, start - made)
                found += out[skip : max(skip, start + length - made)]
                made += len(out)
                if made > self._unsuspicious and made > self._most_ratio * read:
                    raise AbsurdRatioError
                self._keep(made, read, inflater)
            if made < start + length and not inflater.eof:
                raise ScanError(Reason.TRUNCATED)
            return bytes(found)

    def _keep(self, made: int, read: int, inflater: Any) -> None:
        if inflater.eof or made < self._states[-1][0] + self._step:
            return
        self._states.append((made, read, inflater.copy()))
        if len(self._states) > MOST_STATES:
            self._states = self._states[::2]
            self._step *= 2

    def _piece(self, at: int) -> bytes:
        begin, block = self._block
        if not begin <= at < begin + len(block):
            if at >= self._size:
                return b""
            block = self._fetch(at, min(BLOCK, self._size - at))
            begin, self._block = at, (at, block)
        return block[at - begin : at - begin + PIECE]
