"""Files that need nothing, which on most nights are nearly all: found by two hashes, in 14 bytes a file.

A join in DuckDB holds several times as much. Only the files that are left after this are compared there.

A file of the listing is taken for settled if the hash of its URI (64 bits) and 32 bits of that of its scan id are those
of a row. Scan ids are digests of 128 bits of URI and version (`contracts.scan_id`), so another file or version passes
with a probability of 2^-96; among 10^8 files and 10^8 rows one does once in 10^13 nights.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import pyarrow as pa

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

_SCAN_BITS: Final = np.uint64(0xFFFFFFFF)
_TOP_BYTE: Final = np.uint64(56)


class Settled:
    """The rows that settle a file, sorted by the hash of its URI; which of them a listing names is noted."""

    def __init__(self, rows: Iterable[pa.RecordBatch], most: int, *, apart: Hashes) -> None:
        """`rows`: at most `most`, with the columns `uri` and `scan`, uint64. A file with several is settled by none.

        `apart`: hashes of URIs of files that are settled by none, either.
        """
        uris, scans = np.empty(most, np.uint64), np.empty(most, np.uint32)
        count = 0
        for batch in rows:
            until = count + batch.num_rows
            uris[count:until] = batch["uri"].to_numpy()
            scans[count:until] = batch["scan"].to_numpy() & _SCAN_BITS
            count = until
        uris, scans = uris[:count], scans[:count]
        _sort(uris, scans)
        others = np.zeros(count, np.bool_)
        others[1:] = uris[1:] == uris[:-1]
        others[:-1] |= others[1:]
        others |= _is_in(uris, np.sort(apart))
        self._others = np.concatenate([_distinct(uris[others]), apart])
        self._uris, self._scans = uris[~others], scans[~others]
        self._named = np.zeros(len(self._uris), np.bool_)
        self._done = np.zeros(len(self._uris), np.bool_)
        self._left: list[Hashes] = []
        self._named_twice = False

    def __len__(self) -> int:
        return len(self._uris)

    @property
    def done(self) -> int:
        """Files that the listing has as they are known."""
        return int(np.count_nonzero(self._done))

    def sift(self, uris: Hashes, scans: Hashes) -> Mask:
        """Which of these files of the listing are not settled; hashes of their URIs and scan ids."""
        order = np.argsort(uris)  # neighbours are looked up one after the other, while their rows are in the cache
        left = np.ones(len(uris), np.bool_)
        if len(self._uris):
            at = np.searchsorted(self._uris, uris[order]).clip(max=len(self._uris) - 1)
            known = self._uris[at] == uris[order]
            done = known & (self._scans[at] == scans[order] & _SCAN_BITS)
            named = at[known]
            self._named_twice |= bool(self._named[named].any() or (named[1:] == named[:-1]).any())
            self._named[named] = True
            self._done[at[done]] = True
            left[order[done]] = False
        self._left.append(uris[left])
        return left

    def unsettled(self, failed: Hashes) -> Hashes:
        """Hashes of the URIs of all files with rows that are not done; `failed` are those of files with failed rows."""
        failed = failed[~_is_in(failed, self._uris[self._done])]
        return _distinct(np.concatenate([self._others, self._uris[~self._done], failed]))

    @property
    def may_repeat(self) -> bool:
        """Whether the listing may have named a file twice; two files of one hash look so, too."""
        left = np.sort(np.concatenate([np.empty(0, np.uint64), *self._left]))
        return self._named_twice or bool((left[1:] == left[:-1]).any())


def _is_in(values: Hashes, found: Hashes) -> Mask:
    """Which of the values are among those found, which are sorted."""
    if not len(found):
        return np.zeros(len(values), np.bool_)
    return np.asarray(found[np.searchsorted(found, values).clip(max=len(found) - 1)] == values)


def _distinct(values: Hashes) -> Hashes:
    """The values in order, each once: `np.unique` makes a table of them first, and takes fifty times as long."""
    values = np.sort(values)
    first = np.ones(len(values), np.bool_)
    first[1:] = values[1:] != values[:-1]
    return values[first]


def _sort(uris: Hashes, scans: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> None:
    """By URI, in place. The 256 parts of one first byte are sorted one by one, in half of the time of all at once."""
    first = (uris >> _TOP_BYTE).astype(np.uint8)
    order = np.argsort(first, kind="stable")
    uris[:] = uris[order]
    scans[:] = scans[order]
    end = 0
    for rows in np.bincount(first, minlength=256):
        part = slice(end, end := end + rows)
        order = np.argsort(uris[part])
        uris[part], scans[part] = uris[part][order], scans[part][order]
