"""Decode once: from the labelled rows of a catalogue to a data set, with Ray Data.

One row of the Ray dataset is one shard of films. One actor fetches and decodes it and writes its part itself, so pixels
never cross the object store. Films that cannot be read are listed in dataset.json with their reasons. What is there of
a preparation that was killed is kept (`shard_plan.py`); at the end planned = written + left out, or there is no data
set.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.spec import Decode, Fit, Preprocessing
from pipelines.capacity import cluster_capacity
from pipelines.contracts import LABELS, STATUS_OF_REASON, Reason, Status, dataset_schema
from pipelines.decoding.decode import Scan, decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import IncompleteError, InputError, NotFoundError, ScanError
from pipelines.ingest.catalog import read_catalog
from pipelines.ingest.catalog_info import no_labels
from pipelines.ingest.dataset import MANIFEST
from pipelines.ingest.shapes import common_aspect
from pipelines.ingest.shard_plan import (
    Row,
    ShardPlan,
    ShardRecord,
    described,
    own_keys,
    part_name,
    plan_shards,
    read_record,
    record_name,
)
from pipelines.pools import ActorLimits, check_memory, size_pool
from pipelines.progress import progress
from pipelines.shards import Stage, run_shards
from pipelines.splits import SPLITS
from pipelines.storage import Store, open_store
from pipelines.tally import SILENT, Reporter, counting

FILMS_PER_SHARD = 256
BYTES_PER_SHARD = 64 << 20
"""Bytes of pixels per shard: bounds an actor's memory if films are large."""
THREADS = 8

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How to prepare a data set."""

    size: int = 224
    """Side of the square films in pixels."""
    decode: Decode = "reduced"
    """See models.spec.Preprocessing."""
    fit: Fit = "squash"
    """See models.spec.Preprocessing."""
    harmonise: bool = False
    """Take out of the films what tells how they were made; see `pipelines/decoding/fit.py`."""
    aspect: float | None = None
    """Width over height that harmonised films are cut to; None: `common_aspect` of the films."""
    actors: ActorLimits = field(default=ActorLimits())
    """How many actors and how much memory to ask the cluster for; GPUs are never used."""

    def __post_init__(self) -> None:
        if self.aspect is not None and not self.harmonise:
            raise InputError("--aspect is the shape that --harmonise cuts films to; add --harmonise, or take it out")
        _ = self.preprocessing  # refuses values out of range before the work begins

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing asked for; an aspect that the films decide is still open. Raises `InputError`."""
        return Preprocessing(size=self.size, decode=self.decode, fit=self.fit, harmonise=self.aspect)


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The prepared data set."""

    dataset: str
    planned: int
    """Labelled films; planned = films + those left out."""
    films: int
    counts: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    unreadable: Mapping[str, int]
    """Films left out, by reason."""
    shards: int
    shards_found: int
    """Shards that an earlier preparation had done."""
    harmonise: float | None
    """Width over height that films were cut to; None: they were left as they are."""
    fingerprint: str
    seconds: float
    films_per_second: float


class PrepareFilms:
    """The Ray Data actor: reads one shard of catalogue rows, writes one part and its record."""

    def __init__(self, dataset: str, plan: str, preprocessing: Preprocessing, reporter: Reporter = SILENT) -> None:
        self.store = Store(dataset)
        self.plan = plan
        self.preprocessing = preprocessing
        self.reporter = reporter
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch-decode")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Prepare one shard; the record is JSON, because its lists differ in length."""
        shard = int(batch["shard"][0])
        part = part_name(self.plan, shard)
        # Ray may call again for a shard whose answer was lost.
        record = read_record(self.store, part) or self._prepare(shard, part, json.loads(str(batch["rows"][0])))
        return {"shard": [shard], "record": [record.to_json()]}

    def _prepare(self, shard: int, part: str, rows: Sequence[Row]) -> ShardRecord:
        results = list(self.reporter.counted(shard, self.threads.map(self._decode, rows)))
        films = [(row, scan) for row, scan in zip(rows, results, strict=True) if isinstance(scan, Scan)]
        record = ShardRecord(
            films=len(films),
            left_out=[(row["scan_id"], why) for row, why in zip(rows, results, strict=True) if isinstance(why, str)],
        )
        if films:
            self.store.put(part, _to_parquet(films, self.preprocessing.size))
        if not record.lost:
            self.store.put(record_name(part), record.to_json().encode())
        return record

    def _decode(self, row: Row) -> Scan | str:
        try:
            return decode(fetch(row["uri"], row["etag"]), self.preprocessing)
        except ScanError as error:
            return error.reason.value


def prepare(catalog: str, out: str, settings: PrepareSettings) -> DatasetSummary:
    """Decode the labelled films of a catalogue once; Ray is already initialised.

    What an earlier preparation of the same films left here is used. Raises `InputError` if the catalogue has no labels,
    or one class or no film is left to train on; `IncompleteError` if films could not be fetched: then there is no new
    data set, and the same command goes on.
    """
    started = time.perf_counter()
    films = _labelled(catalog)
    preprocessing = settings.preprocessing
    if settings.harmonise and settings.aspect is None:
        preprocessing = replace(preprocessing, harmonise=common_aspect(films, catalog))
    store = open_store(out)
    old = _old_manifest(store)
    plan = plan_shards(_shards(films, preprocessing), preprocessing, old.get("plan", {}))
    if _is_done(plan, old, store):
        log.info("%s: these films are prepared already", store.root)
        _clean(store, old)
        return _summary(store, old, len(plan.shards), plan, started)
    found = plan.found(store)
    if found:
        log.info("%d of %d shards are done already; going on with the rest", len(found), len(plan.shards))
    records = found | dict(_decode_all(plan, found.keys(), store, preprocessing, settings.actors))
    manifest = _manifest(catalog, store, plan, records, preprocessing)
    store.put(MANIFEST, json.dumps(manifest, indent=1).encode())
    _clean(store, manifest, old)
    return _summary(store, manifest, len(found), plan, started)


def _manifest(
    catalog: str, store: Store, plan: ShardPlan, records: Mapping[int, ShardRecord], preprocessing: Preprocessing
) -> dict[str, Any]:
    """What dataset.json is to say, if it is true. Raises `IncompleteError` or `InputError` if it is not."""
    _require_whole(store, plan, records)
    reasons = {scan: reason for record in records.values() for scan, reason in record.left_out}
    rows = [row for shard in plan.shards for row in shard]
    written = sorted((row["scan_id"], row["label"], row["split"]) for row in rows if row["scan_id"] not in reasons)
    unreadable = [(row["uri"], reasons[row["scan_id"]]) for row in rows if row["scan_id"] in reasons]
    for uri, reason in unreadable:
        log.warning("%s: %s; left out", uri, reason)
    if not written:
        raise InputError(f"{catalog}: none of its {plan.films} labelled films can be read; see the log above")
    counts = {
        split: dict(sorted(Counter(label for _, label, own in written if own == split).items())) for split in SPLITS
    }
    # films of another hospital may be prepared for evaluation only
    only_tested = set(counts["test"]) == set(LABELS) and not counts["train"] and not counts["val"]
    if set(counts["train"]) != set(LABELS) and not only_tested:
        raise InputError(f"{catalog}: training needs films of both classes, its split train has {counts['train']}")
    return {
        "size": preprocessing.size,
        "preprocessing": preprocessing.to_json(),
        "fingerprint": _fingerprint(written, preprocessing),
        "counts": counts,
        "unreadable": unreadable,
        "catalog": open_store(catalog).root,
        "plan": described(plan),
        "parts": {
            split: [
                plan.part(number)
                for number, shard in enumerate(plan.shards)
                if records[number].films and shard[0]["split"] == split
            ]
            for split in SPLITS
        },
    }


def _require_whole(store: Store, plan: ShardPlan, records: Mapping[int, ShardRecord]) -> None:
    """Raise `IncompleteError` unless planned = written + left out, no film was lost, and every part is there."""
    again = "run the same command again: it goes on where this one stopped"
    uris = {row["scan_id"]: row["uri"] for shard in plan.shards for row in shard}
    lost = [(scan, why) for record in records.values() if record.lost for scan, why in record.left_out]
    if lost:
        scan, why = lost[0]
        raise IncompleteError(
            f"{len(lost)} films could not be fetched, the first is {uris[scan]} ({why}); when the store is up, {again}"
        )
    keys = own_keys(store)
    counted = sum(record.films + len(record.left_out) for record in records.values())
    absent = [part for number, record in records.items() if record.films and (part := plan.part(number)) not in keys]
    if counted != plan.films or absent:
        raise IncompleteError(
            f"{store.root}: {counted} of {plan.films} planned films are accounted for and {len(absent)} parts are gone:"
            f" does another `prepare` write here? {again}"
        )


def _is_done(plan: ShardPlan, old: Mapping[str, Any], store: Store) -> bool:
    """Whether the data set that is there is this one: the same request, every part there, no film to be tried again."""
    if old.get("plan", {}).get("request") != plan.request:
        return False
    parts = {part for names in old["parts"].values() for part in names}
    failed = [reason for _, reason in old["unreadable"] if STATUS_OF_REASON[Reason(reason)] is Status.FAILED]
    return not failed and parts <= own_keys(store)


def _summary(store: Store, manifest: Mapping[str, Any], found: int, plan: ShardPlan, started: float) -> DatasetSummary:
    seconds = time.perf_counter() - started
    films = sum(sum(labels.values()) for labels in manifest["counts"].values())
    return DatasetSummary(
        dataset=store.root,
        planned=plan.films,
        films=films,
        counts=manifest["counts"],
        unreadable=dict(Counter(reason for _, reason in manifest["unreadable"])),
        shards=len(plan.shards),
        shards_found=found,
        harmonise=manifest["preprocessing"].get("harmonise"),
        fingerprint=manifest["fingerprint"],
        seconds=round(seconds, 2),
        films_per_second=round(films / seconds, 1),
    )


_COLUMNS = ["scan_id", "uri", "label", "subtype", "split", "patient_key", "site", "view"]
_SIZES = ["width", "height"]
_HEADER = ["study_date", "modality", "manufacturer", "age_years", "presentation_intent"]


def _labelled(catalog: str) -> pa.Table:
    table = read_catalog(catalog, columns=[*_COLUMNS, *_SIZES, "etag"])
    table = table.filter(pc.is_in(table["split"], pa.array(SPLITS)))
    if table.num_rows == 0:
        raise no_labels(catalog)
    return table.sort_by("scan_id")


def _shards(films: pa.Table, preprocessing: Preprocessing) -> list[list[Row]]:
    """The work of each call: consecutive films of one split, so that parts in order hold the films in order."""
    per_shard = max(1, min(FILMS_PER_SHARD, BYTES_PER_SHARD // preprocessing.size**2))
    films = films.drop_columns(_SIZES)
    splits = [films.filter(pc.equal(films["split"], split)) for split in SPLITS]
    return [part.slice(start, per_shard).to_pylist() for part in splits for start in range(0, part.num_rows, per_shard)]


def _decode_all(
    plan: ShardPlan, found: Set[int], store: Store, preprocessing: Preprocessing, limits: ActorLimits
) -> Iterator[tuple[int, ShardRecord]]:
    """Number and record of each shard that is not among those found."""
    shards = [
        {"shard": number, "rows": json.dumps(shard)} for number, shard in enumerate(plan.shards) if number not in found
    ]
    if not shards:
        return
    making = {"dataset": store.root, "plan": plan.name, "preprocessing": preprocessing}
    capacity = cluster_capacity()
    check_memory(limits.memory, capacity.largest_memory())
    pool = size_pool(capacity.room(limits.memory), capacity.most_room(limits.memory), len(shards), limits)
    with progress("prepare", plan.films, "films") as advance, counting(advance) as count:
        for number in found:
            count.end(number, len(plan.shards[number]))
        stage = Stage(
            actor=PrepareFilms,
            settings={**making, "reporter": count.reporter},
            actors=pool.most,
            least=pool.least,
            memory=limits.memory,
        )
        with closing(run_shards("prepare", shards, stage)) as summaries:
            for row in summaries:
                count.end(row["shard"], len(plan.shards[row["shard"]]))
                yield row["shard"], ShardRecord.from_json(row["record"])


def _to_parquet(films: list[tuple[Row, Scan]], size: int) -> bytes:
    schema = dataset_schema(size)
    rows = [row for row, _ in films]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _COLUMNS}
    columns["pixels"] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([scan.pixels for _, scan in films]))
    columns["width"] = [scan.header.width for _, scan in films]
    columns["height"] = [scan.header.height for _, scan in films]
    columns["view"] = [row["view"] or scan.header.columns.view for row, scan in films]
    for name in _HEADER:
        columns[name] = [getattr(scan.header.columns, name) for _, scan in films]
    arrays = [
        columns[name] if name == "pixels" else pa.array(columns[name], schema.field(name).type) for name in schema.names
    ]
    sink = pa.BufferOutputStream()
    # Parquet has no bytes inside lists and stores each grey level as 32 bits. Splitting byte streams separates the 24
    # empty bits for zstd: a fifth smaller than zstd alone, and a third less CPU to write and to read.
    pq.write_table(
        pa.table(arrays, schema=schema),
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"pixels.list.element": "BYTE_STREAM_SPLIT"},
    )
    return bytes(sink.getvalue().to_pybytes())


def _fingerprint(rows: list[tuple[str, str, str]], preprocessing: Preprocessing) -> str:
    digest = blake2b(json.dumps(preprocessing.to_json(), sort_keys=True).encode(), digest_size=16)
    for row in rows:
        digest.update("\0".join(row).encode())
    return digest.hexdigest()


def _old_manifest(store: Store) -> dict[str, Any]:
    """dataset.json as it is; empty if there is none, or nothing that can be read."""
    try:
        value: dict[str, Any] = json.loads(store.get(MANIFEST))
    except (NotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("parts"), dict) else {}


def _clean(store: Store, manifest: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> None:
    """Remove what the data set does not name: records, parts of killed preparations and those of `old`."""
    named = {part for names in manifest["parts"].values() for part in names}
    replaced = {part for names in (old or {}).get("parts", {}).values() for part in names}
    stale = sorted((own_keys(store) | replaced) - named)
    if stale:
        store.delete_all(stale)
