"""Merges the many small parts of a month into few large ones, safe while others read and if this process dies.

One commit is one create-only put of `compact-<generation>.parquet` into the folder of its model's month. It holds the
rows of whole parts of finished runs, ordered by uri, and names those parts in its footer, with all that they named.
From that put on the named parts no longer belong to the table (`pipelines/table/parts.py`), so no row is ever there
twice or missing: not before the put, not after it, not while the named parts are deleted or written again.

The generation is one more than the highest present, so two compactions of the same state try the same name; one of them
loses and starts over. A name can be free because its part was already replaced and deleted; a part written under such a
name is dead, because a live one names it. So before anything is deleted, the new part is read back and looked up among
the live ones. If the store has no conditional put, two compactions could overwrite each other's part: there the runs'
lease keeps them apart, and reading back detects what it can.

A part with more than half of ROWS rows is not merged again, so a row is rewritten a few times, not every night.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART
from pipelines.errors import InputError, NotFoundError, StorageError
from pipelines.storage import ObjectInfo, Store, open_store
from pipelines.table.bounded import bounded_connection
from pipelines.table.lease import held_lease
from pipelines.table.parts import (
    FETCH_THREADS,
    REPLACES,
    CompactedPart,
    PartVanishedError,
    damaged_part,
    fetch_parts,
    is_compacted,
    is_part,
    list_scores,
    read_footers,
    replaced,
)
from pipelines.table.presence import check_models, require_any
from pipelines.table.query import create_scores_view

ROWS = 1_000_000
"""Most rows of a part merged from several."""
ROWS_PER_GROUP = 122_880
MEMORY = "1GiB"
THREADS = 4
ATTEMPTS = 10
"""Lost races and vanished parts in a row before giving up."""


@dataclass(frozen=True, kw_only=True)
class CompactedMonth:
    """What a compaction did to the parts of one model and month."""

    model_id: str
    month: str
    """YYYY-MM."""
    parts_before: int
    """Files, including leftovers of an earlier compaction."""
    parts_after: int
    rows: int
    """Rows rewritten."""


@dataclass(frozen=True)
class _State:
    """The parts of a store at one point in time."""

    objects: dict[str, ObjectInfo]
    finished: frozenset[str]
    """Ids of runs with a record."""
    footers: dict[str, CompactedPart]
    gone: frozenset[str]
    """Keys that no longer belong to the table, whether present or not."""

    def months(self) -> list[str]:
        """Folders for compacted parts, one per model and month."""
        return sorted({folder for key in self.objects if (folder := _month_folder(key))})

    def of_month(self, folder: str) -> list[ObjectInfo]:
        """The parts of a month, by key."""
        return [info for key, info in sorted(self.objects.items()) if _month_folder(key) == folder]


def compact(uri: str, *, model: str | None = None, wait: float = 0.0) -> list[CompactedMonth]:
    """Compact the scores at a URI, of all models or one; returns the months in which anything changed.

    Holds each model's lease meanwhile, so that no run adds parts; waits up to `wait` seconds for a run at work. Raises
    `IncompleteError` if it is still at work then, `InputError` for an unreadable part or if nothing was ever scored,
    `StorageError` if others keep changing the same parts.
    """
    store = open_store(uri)
    names = {info.key.split("/")[1] for info in list_scores(store, "scores") if is_part(info.key)}
    if not names:
        require_any(store)
    models = {name.removeprefix("model=") for name in names}
    check_models(store, models, model)
    months = []
    for name in sorted(models) if model is None else [model]:
        with held_lease(store, name, wait=wait):
            months += compact_store(store, model=name)
    return months


def compact_store(store: Store, *, model: str | None = None) -> list[CompactedMonth]:
    """`compact` for an open store, without taking the lease."""
    counts: dict[str, int] = {}
    before = _state(store)
    wanted = [folder for folder in before.months() if model is None or f"/model={model}/" in folder]
    written: Counter[str] = Counter()
    for folder in wanted:
        _sweep(store, before, folder)
        written[folder] = _compact_month(store, folder, counts)
    after = _state(store)
    months = [
        CompactedMonth(
            model_id=folder.split("/")[1].removeprefix("model="),
            month=folder[-10:-3],
            parts_before=len(before.of_month(folder)),
            parts_after=len(after.of_month(folder)),
            rows=written[folder],
        )
        for folder in wanted
    ]
    return [month for month in months if month.rows or month.parts_before != month.parts_after]


def _compact_month(store: Store, folder: str, counts: dict[str, int]) -> int:
    """Commit merges until nothing is left to merge; returns the number of rows written."""
    written = lost = 0
    while lost < ATTEMPTS:
        try:
            state = _state(store)
            merge = _next_merge(store, state, folder, counts)
            if merge is None:
                return written
            rows = _commit(store, state, folder, merge, sum(counts[_version(info)] for info in merge))
        except PartVanishedError:
            rows = None
        written += rows or 0
        lost = lost + 1 if rows is None else 0
    raise StorageError(f"{store.uri(folder)}: others keep changing these parts; compact again when they are done")


def _state(store: Store) -> _State:
    for _ in range(ATTEMPTS):
        listed = list_scores(store)
        objects = {info.key: info for info in listed if is_part(info.key)}
        finished = {key.split("/")[1] for key in (info.key for info in listed) if _is_record(key)}
        try:
            footers = read_footers(store, objects.values())
        except PartVanishedError:
            continue
        by_key = {part.key: part for part in footers}
        return _State(objects, frozenset(finished), by_key, frozenset(replaced(footers)))
    raise StorageError(f"{store.root} is being compacted all the time; compact again when that has ended")


def _is_record(key: str) -> bool:
    return key.startswith("runs/") and key.endswith("/run.json")


def _month_folder(key: str) -> str | None:
    """`scores/model=<id>/date=<day>/…` -> `scores/model=<id>/date=<YYYY-MM>-01`; None for other keys."""
    match = re.match(r"(scores/model=[^/]+/date=\d{4}-\d\d)-\d\d/[^/]+$", key)
    return f"{match[1]}-01" if match else None


def _sweep(store: Store, state: _State, folder: str) -> None:
    """Delete leftovers in a month of a compaction that died, or of a late process of a run."""
    _delete(store, [info.key for info in state.of_month(folder) if info.key in state.gone])


def _delete(store: Store, keys: list[str]) -> None:
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        list(threads.map(store.delete, keys))


def _next_merge(store: Store, state: _State, folder: str, counts: dict[str, int]) -> list[ObjectInfo] | None:
    """The parts to merge next: the first that fit together, of those that are small and complete."""
    small = [info for info in state.of_month(folder) if info.key not in state.gone and _is_complete(info.key, state)]
    small.sort(key=lambda info: (not is_compacted(info.key), info.key))
    _count_rows(store, small, counts)
    merge: list[ObjectInfo] = []
    rows = 0
    for info in small:
        size = counts[_version(info)]
        if size > ROWS // 2:
            continue
        if merge and rows + size > ROWS:
            break
        merge.append(info)
        rows += size
    return merge if len(merge) > 1 else None


def _is_complete(key: str, state: _State) -> bool:
    """Whether no unfinished run may still look for this part by name."""
    return is_compacted(key) or key.rpartition("/")[2].rpartition("-")[0] in state.finished


def _count_rows(store: Store, parts: list[ObjectInfo], counts: dict[str, int]) -> None:
    """Add the row counts of parts not counted yet to `counts`, by key and etag."""
    new = [info for info in parts if _version(info) not in counts]
    for info, file in zip(new, fetch_parts(store, new), strict=True):
        try:
            counts[_version(info)] = pq.read_metadata(file).num_rows
        except FileNotFoundError as error:
            raise PartVanishedError(f"{file} was replaced while it was read") from error
        except pa.ArrowException as error:
            raise InputError(f"{store.uri(info.key)} is not a readable part; restore it from a copy") from error


def _version(info: ObjectInfo) -> str:
    return f"{info.key} {info.etag}"


def _commit(store: Store, state: _State, folder: str, merge: list[ObjectInfo], expected: int) -> int | None:
    """Put one compacted part in place of these parts; returns its number of rows, or None if another was first."""
    names = {info.key for info in merge}
    names |= {key for info in merge if info.key in state.footers for key in state.footers[info.key].replaces}
    generation = 1 + max((part.generation for part in state.footers.values() if part.folder == folder), default=0)
    key = f"{folder}/compact-{generation:05d}.parquet"
    data, rows = _merged(fetch_parts(store, merge), names)
    if rows != expected:
        raise InputError(f"{store.uri(folder)}: {rows} of {expected} rows were read; restore its parts from a copy")
    if not store.create(key, data):
        return None
    now = _state(store)
    if key in now.gone:  # the name was free because its part was already replaced; the replacement names it
        store.delete(key)
        return None
    if not _is_stored(store, key, data):
        return None
    _delete(store, [name for name in names if name in now.objects])
    return rows


def _is_stored(store: Store, key: str, data: bytes) -> bool:
    """Whether exactly these bytes are there; without conditional puts it may be another's part."""
    try:
        return store.get(key) == data
    except NotFoundError:
        return False


def _merged(files: list[Path], names: set[str]) -> tuple[bytes, int]:
    """One Parquet file of the rows of these files, ordered by uri, naming what it replaces; and its number of rows."""
    sink = pa.BufferOutputStream()
    rows = 0
    with pq.ParquetWriter(sink, PART, compression="zstd") as writer:
        for group in _sorted_groups(files):
            writer.write_table(group, row_group_size=ROWS_PER_GROUP)
            rows += group.num_rows
        writer.add_key_value_metadata({REPLACES.decode(): json.dumps(sorted(names))})
    return bytes(sink.getvalue().to_pybytes()), rows


def _sorted_groups(files: list[Path]) -> Iterator[pa.Table]:
    with bounded_connection("compact", memory=MEMORY, threads=THREADS) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        try:
            create_scores_view(connection, files)
            query = f"SELECT {', '.join(PART.names)} FROM scores ORDER BY uri, scored_at, scan_id"  # noqa: S608
            reader = connection.sql(query).to_arrow_reader(ROWS_PER_GROUP)
            for batch in reader:
                yield pa.Table.from_batches([batch]).cast(PART)
        except duckdb.Error as error:
            if not all(file.exists() for file in files):
                raise PartVanishedError("a part was replaced while it was read") from error
            damaged = damaged_part(files, PART.names)
            if damaged:
                part, fault = damaged
                raise InputError(f"{part} is not a readable part: {fault}; restore it from a copy") from error
            raise
