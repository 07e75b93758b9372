"""Decode once: from the labelled rows of a catalogue to a data set, with Ray Data.

One row of the Ray dataset is one shard of films. One actor fetches and decodes it and writes its part itself, so pixels
never cross the object store. Films that cannot be read are listed in dataset.json with their reasons.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import chain
from secrets import token_hex
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.spec import Decode, Preprocessing
from pipelines.capacity import cluster_capacity
from pipelines.contracts import LABELS, Reason, dataset_schema
from pipelines.decoding.decode import Scan, decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import InputError, ScanError, StorageError
from pipelines.ingest.catalog import read_catalog
from pipelines.ingest.catalog_info import no_labels
from pipelines.ingest.dataset import MANIFEST, read_dataset_info
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
    decode: Decode = "dct"
    """See models.spec.Preprocessing."""
    actors: ActorLimits = field(default=ActorLimits())
    """How many actors and how much memory to ask the cluster for; GPUs are never used."""

    def __post_init__(self) -> None:
        _ = self.preprocessing  # refuses values out of range before the work begins

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these films are made for. Raises `InputError` for values out of range."""
        return Preprocessing(size=self.size, decode=self.decode)


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The prepared data set."""

    dataset: str
    films: int
    counts: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    unreadable: Mapping[str, int]
    """Films left out, by reason."""
    fingerprint: str
    seconds: float
    films_per_second: float


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The result of one shard."""

    name: str
    split: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """(scan_id, label, split) of each film written."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(uri, reason) of each film left out."""


class PrepareFilms:
    """The Ray Data actor: reads one shard of catalogue rows, writes one part."""

    def __init__(self, dataset: str, token: str, preprocessing: Preprocessing, reporter: Reporter = SILENT) -> None:
        self.store = Store(dataset)
        self.token = token
        self.preprocessing = preprocessing
        self.reporter = reporter
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch-decode")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Prepare one shard; the summary is JSON, because its lists differ in length."""
        rows = json.loads(str(batch["rows"][0]))
        shard = int(batch["shard"][0])
        results = list(self.reporter.counted(shard, self.threads.map(self._decode, rows)))
        films = [(row, scan) for row, scan in zip(rows, results, strict=True) if isinstance(scan, Scan)]
        part = _Part(
            name=f"{self.token}-{shard:05d}.parquet",
            split=rows[0]["split"],
            rows=[(row["scan_id"], row["label"], row["split"]) for row, _ in films],
            unreadable=[
                (row["uri"], reason) for row, reason in zip(rows, results, strict=True) if isinstance(reason, str)
            ],
        )
        if films:
            self.store.put(part.name, _to_parquet(films, self.preprocessing.size))
        return {"shard": [shard], "part": [json.dumps(asdict(part))]}

    def _decode(self, row: Mapping[str, Any]) -> Scan | str:
        try:
            return decode(fetch(row["uri"], row["etag"]), self.preprocessing)
        except ScanError as error:
            return error.reason.value


def prepare(catalog: str, out: str, settings: PrepareSettings) -> DatasetSummary:
    """Decode the labelled films of a catalogue once; Ray is already initialised.

    Raises `InputError` if the catalogue has no labels, or one class or no film is left to train on.
    """
    started = time.perf_counter()
    films = _labelled(catalog)
    store = open_store(out)
    parts = sorted(_decode_all(films, store, settings), key=lambda part: part.name)
    written = sorted(row for part in parts for row in part.rows)
    unreadable = [entry for part in parts for entry in part.unreadable]
    _refuse_transient(unreadable)
    for uri, reason in unreadable:
        log.warning("%s: %s; left out", uri, reason)
    if not written:
        raise InputError(f"{catalog}: none of its {films.num_rows} labelled films can be read; see the log above")
    counts = {
        split: dict(sorted(Counter(label for _, label, own in written if own == split).items())) for split in SPLITS
    }
    # films of another hospital may be prepared for evaluation only
    only_tested = set(counts["test"]) == set(LABELS) and not counts["train"] and not counts["val"]
    if set(counts["train"]) != set(LABELS) and not only_tested:
        raise InputError(f"{catalog}: training needs films of both classes, its split train has {counts['train']}")
    fingerprint = _fingerprint(written, settings.preprocessing)
    manifest = {
        "size": settings.size,
        "preprocessing": settings.preprocessing.to_json(),
        "fingerprint": fingerprint,
        "counts": counts,
        "unreadable": unreadable,
        "catalog": open_store(catalog).root,
        "parts": {split: [part.name for part in parts if part.rows and part.split == split] for split in SPLITS},
    }
    _commit(store, manifest)
    seconds = time.perf_counter() - started
    return DatasetSummary(
        dataset=store.root,
        films=len(written),
        counts=counts,
        unreadable=dict(Counter(reason for _, reason in unreadable)),
        fingerprint=fingerprint,
        seconds=round(seconds, 2),
        films_per_second=round(len(written) / seconds, 1),
    )


def _refuse_transient(unreadable: list[tuple[str, str]]) -> None:
    """Raise `StorageError` for films that could not be fetched: a data set must not depend on a failing store."""
    lost = [uri for uri, reason in unreadable if reason in {Reason.ACCESS_DENIED, Reason.STORAGE_ERROR}]
    if lost:
        raise StorageError(
            f"{len(lost)} films could not be fetched, the first is {lost[0]}; prepare again when the store is up"
        )


_COLUMNS = ["scan_id", "uri", "label", "subtype", "split", "patient_key", "site", "view"]


def _labelled(catalog: str) -> pa.Table:
    table = read_catalog(catalog, columns=[*_COLUMNS, "etag"])
    table = table.filter(pc.is_in(table["split"], pa.array(SPLITS)))
    if table.num_rows == 0:
        raise no_labels(catalog)
    return table.sort_by("scan_id")


def _shards(films: pa.Table, preprocessing: Preprocessing) -> list[dict[str, Any]]:
    """The work of each call: consecutive films of one split, so that parts in order hold the films in order."""
    per_shard = max(1, min(FILMS_PER_SHARD, BYTES_PER_SHARD // preprocessing.size**2))
    splits = [films.filter(pc.equal(films["split"], split)) for split in SPLITS]
    rows = [part.slice(start, per_shard).to_pylist() for part in splits for start in range(0, part.num_rows, per_shard)]
    return [{"shard": number, "rows": json.dumps(shard)} for number, shard in enumerate(rows)]


def _decode_all(films: pa.Table, store: Store, settings: PrepareSettings) -> Iterator[_Part]:
    shards = _shards(films, settings.preprocessing)
    making = {"dataset": store.root, "token": token_hex(4), "preprocessing": settings.preprocessing}
    limits, capacity = settings.actors, cluster_capacity()
    check_memory(limits.memory, capacity.largest_memory())
    pool = size_pool(capacity.room(limits.memory), capacity.most_room(limits.memory), len(shards), limits)
    with progress("prepare", films.num_rows, "films") as advance, counting(advance) as count:
        stage = Stage(
            actor=PrepareFilms,
            settings={**making, "reporter": count.reporter},
            actors=pool.most,
            least=pool.least,
            memory=limits.memory,
        )
        with closing(run_shards("prepare", shards, stage)) as summaries:
            for row in summaries:
                part = _Part(**json.loads(row["part"]))
                count.end(row["shard"], len(part.rows) + len(part.unreadable))
                yield part


def _to_parquet(films: list[tuple[Mapping[str, Any], Scan]], size: int) -> bytes:
    schema = dataset_schema(size)
    rows = [row for row, _ in films]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _COLUMNS}
    columns["pixels"] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([scan.pixels for _, scan in films]))
    columns["width"] = [scan.header.width for _, scan in films]
    columns["height"] = [scan.header.height for _, scan in films]
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


def _commit(store: Store, manifest: dict[str, Any]) -> None:
    """Name the new parts with one put; then remove those of an earlier preparation."""
    try:
        old = read_dataset_info(store.root).parts
    except InputError:  # there is none, or one of another version of rayscan
        old = {}
    store.put(MANIFEST, json.dumps(manifest, indent=1).encode())
    for part in chain.from_iterable(old.values()):
        store.delete(part)
