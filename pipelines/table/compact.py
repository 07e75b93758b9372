"""Many small parts of a month into few large ones, while others read and whenever this process may die.

One commit is one create-only put of `compact-<generation>.parquet` into the folder of its model's month. It holds the
rows of whole parts of finished runs, ordered by uri, and names those parts in its footer, with all that they named.
From that put on the named parts are no part of the table (`pipelines/table/parts.py`), so a row is never there twice
and never missing: not before the put, not after it, not while the named parts are deleted or written again.

The generation is one more than the highest that stands there, so two compactions of the same state try the same name
and one of them loses and looks again. A name can be free because its part was replaced and deleted already; a part
written under such a name is dead, because those that are live name it. So before anything is deleted the new part is
read back, and looked for among the live ones. Where the store has no conditional put, two compactions could replace
each other's part: there the lease of the runs keeps them apart, and reading back finds out what it can.

A part of more than half of ROWS rows is left alone from then on, so a row is rewritten a few times, not every night.
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

from pipelines.contracts import SCORES
from pipelines.errors import InputError, NotFoundError, StorageError
from pipelines.storage import ObjectInfo, Store, open_store
from pipelines.table.bounded import bounded_connection
from pipelines.table.lease import held_lease
from pipelines.table.parts import (
    FETCH_THREADS,
    REPLACES,
    CompactedPart,
    PartVanishedError,
    fetch_parts,
    is_compacted,
    is_part,
    list_scores,
    read_footers,
    replaced,
    spoilt_part,
)
from pipelines.table.presence import check_models, require_any
from pipelines.table.query import create_scores_view

ROWS = 1_000_000
"""Most rows of a compacted part made of several."""
ROWS_PER_GROUP = 122_880
MEMORY = "1GiB"
THREADS = 4
ATTEMPTS = 10
"""Lost races and vanished parts, in a row, before it gives up."""


@dataclass(frozen=True, kw_only=True)
class CompactedMonth:
    """What was done to the parts of one model and month."""

    model_id: str
    month: str
    """YYYY-MM."""
    parts_before: int
    """Files, leftovers of an earlier compaction among them."""
    parts_after: int
    rows: int
    """Rows written anew."""


@dataclass(frozen=True)
class _State:
    """The parts of a store at one time."""

    objects: dict[str, ObjectInfo]
    finished: frozenset[str]
    """Ids of runs with a record."""
    footers: dict[str, CompactedPart]
    gone: frozenset[str]
    """Keys that are no part of the table, there or not."""

    def months(self) -> list[str]:
        """Folders for compacted parts, one a model and month."""
        return sorted({folder for key in self.objects if (folder := _month_folder(key))})

    def of_month(self, folder: str) -> list[ObjectInfo]:
        """The parts of a month, by key."""
        return [info for key, info in sorted(self.objects.items()) if _month_folder(key) == folder]


def compact(uri: str, *, model: str | None = None, wait: float = 0.0) -> list[CompactedMonth]:
    """Compact the scores at a URI, of all models or one; returns the months in which anything changed.

    Holds each model's lease meanwhile, so that no run adds parts; one that is at work is waited for up to `wait`
    seconds. Raises `IncompleteError` when it still works then, `InputError` for a spoilt part or where nothing was ever
    scored, `StorageError` when others keep changing the same parts.
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
    """The same, of an open store."""
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
    """Commit merges until there is nothing left to merge; returns the rows written."""
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
    """`scores/model=<id>/date=<day>/…` -> `scores/model=<id>/date=<YYYY-MM>-01`; None for a part elsewhere."""
    found = re.match(r"(scores/model=[^/]+/date=\d{4}-\d\d)-\d\d/[^/]+$", key)
    return f"{found[1]}-01" if found else None


def _sweep(store: Store, state: _State, folder: str) -> None:
    """Delete what an earlier compaction that died, or a run's late process, left of a month."""
    _delete(store, [info.key for info in state.of_month(folder) if info.key in state.gone])


def _delete(store: Store, keys: list[str]) -> None:
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        list(threads.map(store.delete, keys))


def _next_merge(store: Store, state: _State, folder: str, counts: dict[str, int]) -> list[ObjectInfo] | None:
    """Parts whose rows are to stand in one: the first that fit, of those that are small and complete."""
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
    """A run without a record may still look for its own parts by name."""
    return is_compacted(key) or key.rpartition("/")[2].rpartition("-")[0] in state.finished


def _count_rows(store: Store, parts: list[ObjectInfo], counts: dict[str, int]) -> None:
    """Fill in the rows of parts not counted yet, by key and etag."""
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
    """Put one compacted part in place of these parts; returns its rows, or None when another was first."""
    names = {info.key for info in merge}
    names |= {key for info in merge if info.key in state.footers for key in state.footers[info.key].replaces}
    generation = 1 + max((part.generation for part in state.footers.values() if part.folder == folder), default=0)
    key = f"{folder}/compact-{generation:05d}.parquet"
    data, rows = _merged(fetch_parts(store, merge), names)
    if rows != expected:
        raise InputError(f"{store.uri(folder)}: {rows} rows were read of {expected}; restore its parts from a copy")
    if not store.create(key, data):
        return None
    now = _state(store)
    if key in now.gone:  # the name was free because its part was replaced already; what replaced it names it
        store.delete(key)
        return None
    if not _stands(store, key, data):
        return None
    _delete(store, [name for name in names if name in now.objects])
    return rows


def _stands(store: Store, key: str, data: bytes) -> bool:
    """Whether exactly this is there; another's part may be, where a put cannot be conditional."""
    try:
        return store.get(key) == data
    except NotFoundError:
        return False


def _merged(files: list[Path], names: set[str]) -> tuple[bytes, int]:
    """One Parquet file of the rows of these files, ordered by uri, naming what it replaces; and its rows."""
    sink = pa.BufferOutputStream()
    rows = 0
    with pq.ParquetWriter(sink, SCORES, compression="zstd") as writer:
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
            query = f"SELECT {', '.join(SCORES.names)} FROM scores ORDER BY uri, scored_at, scan_id"  # noqa: S608
            reader = connection.sql(query).to_arrow_reader(ROWS_PER_GROUP)
            for batch in reader:
                yield pa.Table.from_batches([batch]).cast(SCORES)
        except duckdb.Error as error:
            if not all(file.exists() for file in files):
                raise PartVanishedError("a part was replaced while it was read") from error
            spoilt = spoilt_part(files, SCORES.names)
            if spoilt:
                raise InputError(f"{spoilt[0]} is not a readable part: {spoilt[1]}; restore it from a copy") from error
            raise
