"""What the files of a catalogue say of themselves, read by Ray Data actors: header, hash, and whether they can be read.

A film that was inspected before is not read again: beside its parts a catalogue keeps what was found of each version of
a file (INSPECTED), without labels and with the key of the patient its header names. It is taken up if the keys are of
the same secret and the decoder is the same.

The raw patient id stays in the actor. It hands over the key and, if the secret is new with each catalogue, a hash that
places the patient in a split, so that splits do not depend on chance.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.capacity import cluster_capacity
from pipelines.contracts import CATALOG, Reason
from pipelines.decoding.decode import read_header
from pipelines.decoding.fetch import fetch
from pipelines.decoding.placeholders import is_placeholder
from pipelines.decoding.version import DECODER_VERSION
from pipelines.errors import ScanError, StorageError
from pipelines.ingest.patients import PatientKeys
from pipelines.pools import ActorLimits, check_memory, size_pool
from pipelines.progress import progress
from pipelines.shards import Stage, run_shards
from pipelines.storage import Store
from pipelines.tally import SILENT, Reporter, counting

FILES_PER_SHARD: Final = 256
THREADS: Final = 16
TOLD: Final = ("format", "width", "height", "view", "modality", "body_part", "study_date", "content_hash", "problem")
"""Columns of a catalogue that only the file itself can tell."""
INSPECTED: Final = pa.schema(
    [
        CATALOG.field("scan_id"),
        CATALOG.field("site"),
        *(CATALOG.field(name) for name in TOLD),
        pa.field("patient_key", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("placeholder", pa.bool_()),
    ]
)
"""One row per version of a file. `patient_key` is of the header's patient; `identity` is equal for the films of one and
null where the key serves for that; `placeholder`: the id is no one's."""
_TRANSIENT: Final = {Reason.ACCESS_DENIED, Reason.STORAGE_ERROR}
_READ_AGAIN: Final = (Reason.VANISHED.value, Reason.CHANGED.value)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an earlier catalogue found out."""

    rows: pa.Table
    """INSPECTED."""
    secret: str | None
    """Fingerprint of the secret of its keys; None: a random one."""

    def usable(self, keys: PatientKeys) -> pa.Table:
        """The rows that need not be read again, if the new keys are to be `keys`."""
        rows = self.rows.filter(pc.invert(pc.is_in(self.rows["problem"], pa.array(_READ_AGAIN))))
        if self.secret == keys.fingerprint():
            return rows
        return rows if rows["patient_key"].null_count == rows.num_rows else rows.slice(0, 0)


class InspectFiles:
    """The Ray Data actor: reads the files of one shard."""

    def __init__(self, keys: PatientKeys, reporter: Reporter = SILENT) -> None:
        self.keys = keys
        self.reporter = reporter
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inspect")

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        """Inspect one shard; the summary has its rows, as JSON."""
        rows = json.loads(str(batch["rows"][0]))
        shard = int(batch["shard"][0])
        found = list(self.reporter.counted(shard, self.threads.map(self._inspect, rows)))
        return {"shard": [shard], "found": [json.dumps(found, default=str)]}

    def _inspect(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"scan_id": row["scan_id"], "site": row["site"]}
        try:
            data = fetch(row["uri"], row["etag"])
            found["content_hash"] = blake2b(data, digest_size=16).hexdigest()
            header = read_header(data)
        except ScanError as error:
            return {**found, "problem": error.reason.value}
        known = header.columns
        found |= {"format": header.format, "width": header.width, "height": header.height}
        found |= {"view": known.view, "modality": known.modality, "body_part": known.body_part}
        found |= {"study_date": header.study_date}
        if not header.patient_id:
            return found
        if is_placeholder(header.patient_id):
            return {**found, "placeholder": True}
        issuer = header.issuer or row["site"] or ""
        found["patient_key"] = self.keys.key(header.patient_id, issuer)
        if self.keys.is_random:
            found["identity"] = blake2b(f"{issuer}\0{header.patient_id}".encode(), digest_size=16).hexdigest()
        return found


def inspect(
    rows: pa.Table, keys: PatientKeys, limits: ActorLimits, known: pa.Table | None = None
) -> tuple[pa.Table, int]:
    """INSPECTED of the rows of a catalogue, in their order, and how many were read; Ray is already initialised.

    `known` has what need not be read again, where the site, which stands for the issuer, is still the same.
    Raises `StorageError` for files that the store did not deliver: splits must not depend on a failing store.
    """
    new = rows
    if known is not None:
        known = known.filter(pc.is_in(_identified(known), _identified(rows)))
        new = rows.filter(pc.invert(pc.is_in(_identified(rows), _identified(known))))
    found = _read(new.select(["scan_id", "uri", "etag", "site"]), keys, limits) if new.num_rows else []
    read = pa.Table.from_pylist(found, schema=INSPECTED)
    _refuse_transient(read, new)
    both = read if known is None else pa.concat_tables([read, known])
    places = pc.index_in(rows["scan_id"].combine_chunks(), both["scan_id"].combine_chunks())
    return both.take(places), new.num_rows


def _identified(rows: pa.Table) -> pa.Array:
    """Version and site of each file."""
    return pc.binary_join_element_wise(
        rows["scan_id"].combine_chunks(), pc.coalesce(rows["site"].combine_chunks(), "\0"), "/"
    )


def _read(rows: pa.Table, keys: PatientKeys, limits: ActorLimits) -> list[dict[str, Any]]:
    shards = [
        {"shard": number, "rows": json.dumps(rows.slice(start, FILES_PER_SHARD).to_pylist())}
        for number, start in enumerate(range(0, rows.num_rows, FILES_PER_SHARD))
    ]
    capacity = cluster_capacity()
    check_memory(limits.memory, capacity.largest_memory())
    pool = size_pool(capacity.room(limits.memory), capacity.most_room(limits.memory), len(shards), limits)
    found: list[dict[str, Any]] = []
    with progress("inspect", rows.num_rows) as advance, counting(advance) as count:
        stage = Stage(
            actor=InspectFiles,
            settings={"keys": keys, "reporter": count.reporter},
            actors=pool.most,
            least=pool.least,
            memory=limits.memory,
        )
        with closing(run_shards("inspect", shards, stage)) as summaries:
            for summary in summaries:
                told = json.loads(summary["found"])
                found += [{**row, "study_date": _day(row.get("study_date"))} for row in told]
                count.end(summary["shard"], len(told))
    return found


def _day(text: str | None) -> Any:
    return np.datetime64(text).astype(object) if text else None


def _refuse_transient(found: pa.Table, rows: pa.Table) -> None:
    lost = found.filter(pc.is_in(found["problem"], pa.array([reason.value for reason in _TRANSIENT])))
    if lost.num_rows:
        first = rows.filter(pc.equal(rows["scan_id"], lost["scan_id"][0]))["uri"][0].as_py()
        raise StorageError(
            f"{lost.num_rows} files could not be fetched, the first is {first}; make the catalogue again when the store"
            " is up: what is inspected decides who is trained on and who is tested on"
        )


def write_inspected(store: Store, name: str, found: pa.Table) -> None:
    """Keep what was found beside the parts of a catalogue, without what is not for keeping."""
    sink = pa.BufferOutputStream()
    pq.write_table(found.set_column(INSPECTED.get_field_index("identity"), INSPECTED.field("identity"),
                                    pa.nulls(found.num_rows, pa.string())), sink, compression="zstd")  # fmt: skip
    store.put(name, sink.getvalue().to_pybytes())


def read_inspected(store: Store, manifest: Mapping[str, Any]) -> Known | None:
    """What the catalogue with this manifest kept; None if it kept nothing that this version can use."""
    kept = manifest.get("inspected")
    if not isinstance(kept, dict) or kept.get("decoder") != DECODER_VERSION or not kept.get("parts"):
        return None
    tables = [pq.read_table(pa.BufferReader(store.get(part))) for part in kept["parts"]]
    if any(not table.schema.equals(INSPECTED) for table in tables):
        return None
    return Known(rows=pa.concat_tables(tables), secret=kept.get("secret"))
