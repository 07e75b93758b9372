"""The superseded rows of a large table, kept: in the cache of this machine, and beside the table for all others.

    SCORES/scores/_latest/<digest>.npz   the names of parts, and a bit for each of their rows

A file names the parts it was made of, so it is of use as long as all of them are in the table, and of parts that were
added since only their own superseding rows have to be looked up. It holds nothing of a patient. Engines that read the
table pass over folders that begin with an underscore. In a format of numpy's, because Arrow imports pandas before it
makes an array of a list, which would take a third of a short question.
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np

from models.messages import first_line
from pipelines.errors import NotFoundError
from pipelines.storage import ObjectInfo, Store, open_store
from pipelines.table.delta import Part
from pipelines.table.delta_log import FOLDER
from pipelines.table.parts import mirror_folder

KEPT_FROM_ROWS = 1_000_000
"""Rows of a table from which on its superseded rows are kept; in a smaller one they are found faster than read."""
KEPT_FILES: Final = 4
MARKS: Final = f"{FOLDER}/_latest"

Bits = np.ndarray[Any, np.dtype[np.bool_]]
"""(rows of a part, or of a table): whether the row is superseded."""

log = logging.getLogger("rayscan")


def part_name(part: Part) -> str:
    """By which a part is known here: one that was written again has another size."""
    return f"{part.key} {part.size}"


def is_large(parts: Iterable[Part]) -> bool:
    """Whether the superseded rows of a table of these parts are kept."""
    return sum(part.rows for part in parts) >= KEPT_FROM_ROWS


def cache_of(store: Store) -> Store:
    """What is kept on this machine for the scores in a store."""
    return open_store(str(mirror_folder(store)))


def kept_marks(store: Store, parts: Sequence[Part]) -> Mapping[str, Bits]:
    """What is kept of a table to which nothing but parts was added since, by the names of its parts; or nothing."""
    rows = {part_name(part): part.rows for part in parts}
    best: Mapping[str, Bits] = {}
    if not is_large(parts):
        return best
    for place in (cache_of(store), store):
        for file in _files(place):
            if len(best) == len(parts):
                return best
            marks = _read(place, file.key, rows)
            if len(marks) > len(best):
                best = marks
    return best


def keep_marks(place: Store, parts: Sequence[Part], marks: Bits) -> None:
    """Keep the marks of all rows of these parts, one part after the other, if they are many; older files go."""
    names = [part_name(part) for part in parts]
    digest = blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
    key = f"{MARKS}/{digest}.npz"
    if not is_large(parts) or place.exists(key):
        return
    data = io.BytesIO()
    np.savez(data, parts=np.array(names), bits=np.packbits(marks))
    place.put(key, data.getvalue())
    place.delete_all([file.key for file in _files(place)[KEPT_FILES:]])


def _files(place: Store) -> list[ObjectInfo]:
    """The newest first."""
    try:
        infos = [info for chunk in place.list(MARKS) for info in chunk]
    except NotFoundError:  # nothing was ever kept on this machine
        return []
    return sorted(infos, key=lambda info: info.modified, reverse=True)


def _read(place: Store, key: str, rows: Mapping[str, int]) -> Mapping[str, Bits]:
    """What a file says, if each of its parts is among those with so many `rows`; else nothing."""
    try:
        with np.load(io.BytesIO(place.get(key))) as kept:
            names, bits = kept["parts"].tolist(), kept["bits"]
    except NotFoundError:  # another process has just replaced it
        return {}
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        log.warning("%s is damaged and not used; delete it (%s)", place.uri(key), first_line(error))
        return {}
    if not rows.keys() >= set(names):
        return {}
    ends = np.cumsum([rows[name] for name in names])
    if len(bits) != (ends[-1] + 7) // 8:
        log.warning("%s does not fit its parts and is not used; delete it", place.uri(key))
        return {}
    return dict(zip(names, np.split(np.unpackbits(bits, count=ends[-1]) > 0, ends[:-1]), strict=True))
