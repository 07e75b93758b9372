"""Local files of the table's parts, for DuckDB and Arrow.

A part never changes once it is in the table, so remote ones are mirrored into the local cache (readable by its owner
only): a second question fetches only what is new.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from models.messages import first_line
from pipelines.bundles import cache_folder
from pipelines.errors import InputError, NotFoundError, StorageError
from pipelines.storage import Store, open_store
from pipelines.table.delta import Part

FETCH_THREADS: Final = 16
KEPT_SECONDS: Final = 7 * 24 * 3600
"""A mirrored part that no question has used for so long is removed from the cache."""


def fetch_parts(store: Store, parts: list[Part]) -> list[Path]:
    """Local files of these parts, in their order; remote ones are fetched in threads.

    Raises `StorageError` if a part is not there: the table was compacted or erased and cleaned up meanwhile.
    """
    if store.is_local:
        return [store.path / part.key for part in parts]
    mirror = mirror_folder(store)
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        files = list(threads.map(lambda part: _mirrored(store, part, mirror), parts))
    _forget_unused(mirror)
    return files


def mirror_folder(store: Store) -> Path:
    """The local cache for the parts of a scores store and what was computed from them."""
    return cache_folder("scores") / blake2b(store.root.encode(), digest_size=8).hexdigest()


def damaged_part(files: Iterable[Path], columns: list[str]) -> tuple[Path, str] | None:
    """The first file that is not a readable part with these columns, and the fault in one line; None if all are."""
    for file in files:
        try:
            pq.read_table(file, columns=columns, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            return file, first_line(error)
    return None


def refuse_damaged(files: Iterable[Path], columns: list[str], error: Exception) -> None:
    """Raise `InputError` naming the damaged part, if there is one; `error` itself may name none, or another."""
    damaged = damaged_part(files, columns)
    if damaged:
        part, fault = damaged
        raise InputError(
            f"the scores cannot be read: {part} is damaged ({fault}); restore it from a copy of the store"
        ) from error


def _mirrored(store: Store, part: Part, mirror: Path) -> Path:
    kept = mirror / part.key
    if kept.exists() and kept.stat().st_size == part.size:
        kept.touch()
        return kept
    try:
        data = store.get(part.key)
    except NotFoundError as error:
        raise StorageError(f"{store.uri(part.key)} has left the scores while they were read; ask again") from error
    # A local put is atomic, so neither a second process nor a kill leaves half a file under this name.
    open_store(str(mirror)).put(part.key, data)
    return kept


def _forget_unused(mirror: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for file in mirror.rglob("*.parquet"):
        if file.stat().st_mtime < oldest:
            file.unlink(missing_ok=True)
