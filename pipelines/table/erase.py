"""Erases patients, or single films, from the scores: the table, its older versions, the plans and the identifiers.

The parts that hold their rows are written again without them, and all of these come into the table in one version.
Then every file that left the table, now or before, and holds such a row is deleted: no `query --as-of` finds it.
A film of a patient is also erased where it was scored without a patient key. What was made of the rows for people (the
reports of nights) is named, not changed. The archive is not touched: films that stay there are scored again.
"""

import html
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts import IDENTITY_FOLDER, PART
from pipelines.errors import InputError, NotFoundError
from pipelines.storage import Store, open_store
from pipelines.table.compact import put_merged
from pipelines.table.delta import Part, ScoresTable, open_table
from pipelines.table.lease import lease_of_scores
from pipelines.table.parts import fetch_parts, mirror_folder, refuse_damaged
from pipelines.table.presence import require_any, unfinished_runs

NOTICE: Final = (
    "not touched: the archive (films that stay in it are scored again), catalogues, data sets, pictures in bundles,"
    " exported answers, and copies of the scores in the caches of other machines"
)
_KEYS: Final = ["uri", "patient_key"]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was erased; it names nobody."""

    films: int
    """Distinct URIs."""
    rows: int
    """Of the table."""
    parts: int
    """Parts that were written again, or removed."""
    older_files: int
    """Files of older versions, and of runs that died, that were deleted."""
    plan_rows: int
    identity_rows: int
    """Unique identifiers of their images, in SCORES/identity."""
    still_named: list[str] = field(default_factory=list)
    """Keys under runs/ whose content still names a film or a patient: remove them, or make the reports again."""
    notice: str = NOTICE


@dataclass(frozen=True, kw_only=True)
class _Found:
    uris: set[str]
    parts: list[Part]
    rows: int


def erase(
    uri: str,
    *,
    patients: Iterable[str] = (),
    uris: Iterable[str] = (),
    agreed: Callable[[int, int], bool],
    wait: float = 0.0,
) -> Erasure | None:
    """Erase the films of these patient keys, and these films, from the scores at a URI; None if it was not agreed to.

    `agreed` is asked once, with the number of films and of rows, before anything is changed. Nobody scores meanwhile:
    the leases of all models are held; `wait` seconds are waited for a run. Raises `InputError` if nothing was ever
    scored or a run is unfinished, because its plan may name them and be resumed; `IncompleteError` if a run is at work.
    """
    store = open_store(uri)
    keys = set(patients)
    conditional = store.has_conditional_put()
    table = open_table(store, conditional=conditional)
    if table is None:
        require_any(store)
    with ExitStack() as leases:
        models = sorted({part.model_id for part in table.parts()}) if table else []
        for model in models if conditional else models[:1]:
            leases.enter_context(lease_of_scores(store, model, conditional=conditional, wait=wait))
        runs = [info.key for chunk in store.list("runs") for info in chunk]
        _refuse_unfinished(store, runs)
        plans = [key for key in runs if key.endswith(".parquet")]
        identities = [info.key for chunk in store.list(IDENTITY_FOLDER) for info in chunk]
        table = open_table(store, conditional=conditional)
        found = _find(store, table, plans, keys, set(uris))
        if not agreed(len(found.uris), found.rows):
            return None
        older = 0
        if table is not None:
            _rewrite(table, found)
            older = _remove_older(table.latest(), found.uris)
        return Erasure(
            films=len(found.uris),
            rows=found.rows,
            parts=len(found.parts),
            older_files=older,
            plan_rows=sum(_erase_rows(store, key, found.uris) for key in plans),
            identity_rows=sum(_erase_rows(store, key, found.uris) for key in identities),
            still_named=sorted(_naming(store, [key for key in runs if key not in plans], found.uris | keys)),
        )


def _refuse_unfinished(store: Store, runs: Iterable[str]) -> None:
    for run_id in unfinished_runs(runs):
        raise InputError(
            f"{store.root}: run {run_id} is unfinished, and its plan may name what is to be erased; run its score"
            " command again, then erase"
        )


def _find(store: Store, table: ScoresTable | None, plans: Iterable[str], patients: set[str], uris: set[str]) -> _Found:
    """The parts with rows to erase. A patient's films are known by any row or plan, of any version, with the key."""
    parts = table.parts() if table else []
    files = fetch_parts(store, parts)
    try:
        kept = [pq.read_table(file, columns=_KEYS, partitioning=None) for file in files]
    except (pa.ArrowException, OSError) as error:
        refuse_damaged(files, _KEYS, error)
        raise
    others = [_columns(store, key) for key in plans]
    others += [_columns(store, key) for key in table.unused(timedelta(0))] if table else []
    everything = [rows for rows in (*kept, *others) if rows is not None]
    for rows in everything:
        uris = uris | set(rows.filter(_is_in(rows["patient_key"], patients))["uri"].to_pylist())
    counts = [rows.filter(_is_in(rows["uri"], uris)).num_rows for rows in kept]
    known = set().union(*(rows.filter(_is_in(rows["uri"], uris))["uri"].to_pylist() for rows in everything))
    return _Found(uris=known, parts=[part for part, n in zip(parts, counts, strict=True) if n], rows=sum(counts))


def _rewrite(table: ScoresTable, found: _Found) -> None:
    """Put the parts without these rows in place of those with them, in one version; old files are left for later."""
    if not found.parts:
        return
    new = []
    for part, file in zip(found.parts, fetch_parts(table.store, found.parts), strict=True):
        rows = pq.read_table(file, partitioning=None, schema=PART)
        rest = rows.filter(pc.invert(_is_in(rows["uri"], found.uris)))
        if rest.num_rows:
            new.append(put_merged(table.store, part, rest))
    finished = {part.run_id for part in found.parts} - {""}
    table.replace(found.parts, new, {"operation": "erase", "rows": found.rows}, finished=finished)


def _remove_older(table: ScoresTable, uris: set[str]) -> int:
    """Delete the files outside the table that hold such rows, here and in this machine's cache; returns how many."""
    doomed = []
    for key in table.unused(timedelta(0)):
        rows = _columns(table.store, key)
        if rows is not None and pc.any(_is_in(rows["uri"], uris)).as_py():
            doomed.append(key)
    table.store.delete_all(doomed)
    if not table.store.is_local:
        for key in doomed:
            (mirror_folder(table.store) / key).unlink(missing_ok=True)
    return len(doomed)


def _erase_rows(store: Store, key: str, uris: set[str]) -> int:
    rows = pq.read_table(pa.BufferReader(store.get(key)))
    rest = rows.filter(pc.invert(_is_in(rows["uri"], uris)))
    if rest.num_rows < rows.num_rows:
        sink = pa.BufferOutputStream()
        pq.write_table(rest, sink, compression="zstd")
        store.put(key, sink.getvalue().to_pybytes())
    return int(rows.num_rows - rest.num_rows)


def _naming(store: Store, keys: Iterable[str], names: set[str]) -> list[str]:
    """The objects that hold one of these names, as it is or as HTML or JSON write it."""
    written = {form.encode() for name in names for form in (name, html.escape(name), json.dumps(name)[1:-1])}
    return [key for key in keys if any(name in data for data in [store.get(key)] for name in written)]


def _columns(store: Store, key: str) -> pa.Table | None:
    """URIs and patient keys of a Parquet file; None for one that has gone, or is none."""
    try:
        return pq.read_table(pa.BufferReader(store.get(key)), columns=_KEYS)
    except (NotFoundError, pa.ArrowInvalid):
        return None


def _is_in(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(sorted(values), pa.string()))
