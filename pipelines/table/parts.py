"""Which files make up the table now: parts written by runs, and parts merged from them by a compaction.

    scores/model=<id>/date=<day>/<run_id>-<shard>.parquet              a shard of a run
    scores/model=<id>/date=<YYYY-MM-01>/compact-<generation>.parquet   many parts of that month in one

A compacted part names in its Parquet footer every part whose rows it holds, directly or through another compacted part.
A part named by a live compacted part does not belong to the table, whether it is still there, deleted, or written again
by a process that outlived its driver. A compacted part is live unless one of a higher generation names it; the names in
a dead one do not count. `pipelines/table/compact.py` keeps these rules; this module reads by them.

Remote parts never change once written, so they are mirrored into the local cache (readable by its owner only), where
DuckDB reads them: a second question fetches only what is new.
"""

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.messages import first_line
from pipelines.bundles import cache_folder
from pipelines.errors import InputError, NotFoundError, StorageError
from pipelines.storage import ObjectInfo, Store, open_store

FETCH_THREADS = 16
LISTINGS = 6
REPLACES = b"rayscan.replaces"
"""Key of the footer entry: JSON list of the keys of the replaced parts."""

_COMPACTED = re.compile(r"(?P<folder>scores/model=[^/]+/date=\d{4}-\d\d-01)/compact-(?P<generation>\d{5,})\.parquet")


class PartVanishedError(StorageError):
    """A part was deleted between listing and reading, because a compacted part now holds its rows: list again."""


@dataclass(frozen=True, kw_only=True)
class CompactedPart:
    """A compacted part and the contents of its footer."""

    key: str
    folder: str
    generation: int
    replaces: frozenset[str]


def is_part(key: str) -> bool:
    """Whether a key of a scores store is a part of the table."""
    return key.startswith("scores/model=") and key.endswith(".parquet")


def is_compacted(key: str) -> bool:
    """Whether a key of a scores store is that of a compacted part."""
    return _COMPACTED.fullmatch(key) is not None


def list_scores(store: Store, prefix: str = "") -> list[ObjectInfo]:
    """All objects of a scores store below a folder, consistent with one point in time.

    A listing takes many requests. A compaction that ends meanwhile may hide both a part and its replacement: the part
    is deleted before its page is read, the new one is written to a page already read. The next listing then shows a
    compacted part that this one lacks, so a listing is accepted only if the next one has the same compacted parts.
    Raises `StorageError` if two in a row never agree.
    """
    objects = _listed(store, prefix)
    for _ in range(LISTINGS):
        again = _listed(store, prefix)
        if _compacted_keys(objects) == _compacted_keys(again):
            return objects
        objects = again
    raise StorageError(f"{store.root} is being compacted all the time; ask again when that has ended")


def live_parts(store: Store, objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """The parts among these objects that belong to the table, by key: those no live compacted part names.

    Raises `PartVanishedError` if a compacted part has vanished, `InputError` if one is unreadable.
    """
    parts = [info for info in objects if is_part(info.key)]
    gone = replaced(read_footers(store, parts))
    if not store.is_local:
        _forget(store, gone)
    return sorted((info for info in parts if info.key not in gone), key=lambda info: info.key)


def local_parts(store: Store, objects: Iterable[ObjectInfo]) -> list[Path]:
    """Local files of the live parts among these objects, by key; remote ones are fetched in threads.

    Raises as `live_parts` and `fetch_parts` do.
    """
    return fetch_parts(store, live_parts(store, objects))


def fetch_parts(store: Store, parts: list[ObjectInfo]) -> list[Path]:
    """Local files of these parts, in their order. Raises `PartVanishedError`."""
    if store.is_local:
        return [store.path / info.key for info in parts]
    mirror = mirror_folder(store)
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        return list(threads.map(lambda info: _mirrored(store, info, mirror), parts))


def read_footers(store: Store, objects: Iterable[ObjectInfo]) -> list[CompactedPart]:
    """The footers of the compacted parts among these objects."""
    compacted = [info for info in objects if is_compacted(info.key)]
    files = fetch_parts(store, compacted)
    return [_compacted(info.key, file) for info, file in zip(compacted, files, strict=True)]


def replaced(compacted: Iterable[CompactedPart]) -> set[str]:
    """Keys that do not belong to the table, because live ones of these compacted parts hold their rows."""
    gone: set[str] = set()
    for part in sorted(compacted, key=lambda part: part.generation, reverse=True):
        if part.key not in gone:
            gone |= part.replaces
    return gone


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
            f"the scores cannot be read: {part} is damaged ({fault}); restore it, or move it and its run's folder away"
            " and score again"
        ) from error


def _listed(store: Store, prefix: str) -> list[ObjectInfo]:
    return [info for chunk in store.list(prefix) for info in chunk]


def _compacted_keys(objects: list[ObjectInfo]) -> set[str]:
    return {info.key for info in objects if is_compacted(info.key)}


def _compacted(key: str, file: Path) -> CompactedPart:
    name = _COMPACTED.fullmatch(key)
    assert name
    try:
        footer = pq.read_metadata(file).metadata or {}
        keys = json.loads(footer[REPLACES])
    except FileNotFoundError as error:
        raise PartVanishedError(f"{key} was replaced while it was read; ask again") from error
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(
            f"the scores cannot be read: {key} is not a whole compacted part; restore it from a copy"
        ) from error
    return CompactedPart(key=key, folder=name["folder"], generation=int(name["generation"]), replaces=frozenset(keys))


def _mirrored(store: Store, info: ObjectInfo, mirror: Path) -> Path:
    # A name is written once, except after an aborted compaction on a store without conditional put: hence the etag.
    kept = mirror / info.key
    if is_compacted(info.key):
        kept = kept.with_name(f"{kept.stem}-{blake2b(info.etag.encode(), digest_size=4).hexdigest()}.parquet")
    if not (kept.exists() and kept.stat().st_size == info.size):
        try:
            data = store.get(info.key)
        except NotFoundError as error:
            raise PartVanishedError(f"{store.uri(info.key)} was replaced while it was read; ask again") from error
        # A local put is atomic, so neither a second process nor a kill leaves half a file under this name.
        open_store(str(mirror)).put(str(kept.relative_to(mirror)), data)
    return kept


def _forget(store: Store, gone: set[str]) -> None:
    """Remove mirrored parts whose rows a compacted part now holds, so that the cache does not grow for ever."""
    mirror = mirror_folder(store)
    for file in mirror.rglob("*.parquet"):
        key = re.sub(r"(compact-\d+)-[0-9a-f]{8}\.parquet$", r"\1.parquet", file.relative_to(mirror).as_posix())
        if key in gone:
            file.unlink(missing_ok=True)
