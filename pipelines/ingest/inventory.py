"""A bucket's objects from an S3 Inventory instead of a listing: 1,000,000 rows in one file, and no request a page.

`manifest.json` names the data files: CSV (gzip) or Parquet. In CSV the keys are percent-encoded. An inventory is a day
old or a week: a film that has changed since is `changed` when it is fetched, and one that is gone `vanished`.
"""

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from models.messages import first_line
from pipelines.contracts import TIMESTAMP
from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.ignored import Ignored
from pipelines.ingest.objects import OBJECTS, addressable
from pipelines.storage import Store, open_store, split_uri

_NEEDED: Final = {"key": "Key", "size": "Size", "modified": "LastModifiedDate", "etag": "ETag"}
_IN_PARQUET: Final = {"Key": "key", "Size": "size", "LastModifiedDate": "last_modified_date", "ETag": "e_tag",
                      "IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker"}  # fmt: skip
ROWS: Final = 65_536


def inventory_objects(uri: str, archive: Store, ignored: Ignored) -> Iterator[pa.RecordBatch]:
    """The objects below an archive as OBJECTS, newest versions only; `uri` is that of the inventory's manifest.json.

    Raises `InputError` for a manifest that is none, of another bucket, or without the fields that are needed.
    """
    folder, name = split_uri(open_store(uri).root)
    manifest = _manifest(uri, folder.get(name))
    bucket, _, prefix = archive.root.partition("://")[2].partition("/")
    if archive.is_local or manifest["sourceBucket"] != bucket:
        raise InputError(
            f"{uri}: an inventory of the bucket {manifest['sourceBucket']}, but the archive is {archive.root}"
        )
    fields = [field.strip() for field in manifest["fileSchema"].split(",")] if manifest["fileFormat"] == "CSV" else None
    for part in manifest["files"]:
        data = _part(folder, name, part["key"])
        for batch in _csv(uri, data, fields) if fields else _parquet(uri, data):
            yield addressable(_below(batch, f"{prefix}/" if prefix else ""), ignored)


def _manifest(uri: str, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        _ = [manifest[name] for name in ("sourceBucket", "fileFormat")], [part["key"] for part in manifest["files"]]
        if manifest["fileFormat"] not in {"CSV", "Parquet"}:
            raise InputError(f"{uri}: an inventory in {manifest['fileFormat']}; make it in Parquet or CSV")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri}: no manifest.json of an S3 Inventory ({first_line(error)})") from error
    return dict(manifest)


def _part(folder: Store, name: str, key: str) -> bytes:
    """A data file: where the manifest says, in the manifest's bucket; for a copy, below the manifest's folder."""
    beside = name.rpartition("/")[0]
    for place in (key, f"{beside}/{key}".lstrip("/"), f"{beside}/{key.rpartition('/')[2]}".lstrip("/")):
        if folder.exists(place):
            return folder.get(place)
    raise NotFoundError(f"{folder.uri(key)}: named by the inventory, but not there")


def _csv(uri: str, data: bytes, fields: list[str]) -> Iterator[pa.RecordBatch]:
    _require(uri, fields)
    reading = pa.csv.ReadOptions(column_names=fields, block_size=16 << 20)
    converting = pa.csv.ConvertOptions(
        column_types={"Key": pa.string(), "Size": pa.int64(), "LastModifiedDate": TIMESTAMP, "ETag": pa.string()},
        include_columns=[name for name in fields if name in _IN_PARQUET],
        strings_can_be_null=True,
    )
    try:
        stream = pa.input_stream(pa.py_buffer(data), compression="gzip" if data[:2] == b"\x1f\x8b" else None)
        with pa.csv.open_csv(stream, read_options=reading, convert_options=converting) as reader:
            for batch in reader:
                keys = pa.array([unquote_plus(key) for key in batch["Key"].to_pylist()], pa.string())
                yield _objects(batch.set_column(batch.schema.get_field_index("Key"), "Key", keys))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: a data file of this inventory cannot be read: {first_line(error)}") from error


def _parquet(uri: str, data: bytes) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            back = {there: name for name, there in _IN_PARQUET.items()}
            there = [name for name in file.schema_arrow.names if name in back]
            _require(uri, [back[name] for name in there])
            for batch in file.iter_batches(ROWS, columns=there):
                yield _objects(batch.rename_columns([back[name] for name in batch.schema.names]))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: a data file of this inventory cannot be read: {first_line(error)}") from error


def _require(uri: str, fields: list[str]) -> None:
    if missing := [name for name in _NEEDED.values() if name not in fields]:
        raise InputError(f"{uri}: the inventory lacks {', '.join(missing)}; add the fields to its configuration")


def _objects(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The newest versions; delete markers have no size."""
    if "IsLatest" in batch.schema.names:
        batch = batch.filter(pc.equal(batch["IsLatest"].cast(pa.bool_()), True))
    if "IsDeleteMarker" in batch.schema.names:
        batch = batch.filter(pc.invert(pc.coalesce(batch["IsDeleteMarker"].cast(pa.bool_()), False)))
    modified = batch["LastModifiedDate"]
    if not pa.types.is_timestamp(modified.type):
        modified = pc.cast(modified, TIMESTAMP)
    elif modified.type.tz is None:
        modified = pc.assume_timezone(modified.cast(pa.timestamp("us")), "UTC")
    columns = {
        "key": batch["Key"].cast(pa.string()),
        "size": pc.coalesce(batch["Size"].cast(pa.int64()), 0),
        "etag": pc.utf8_trim(pc.coalesce(batch["ETag"].cast(pa.string()), ""), characters='"'),
        "modified": modified.cast(TIMESTAMP),
    }
    return pa.record_batch([columns[name] for name in OBJECTS.names], schema=OBJECTS)


def _below(batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
    """The rows below a prefix, with keys relative to it."""
    if not prefix:
        return batch
    batch = batch.filter(pc.starts_with(batch["key"], prefix))
    return batch.set_column(0, OBJECTS.field("key"), pc.utf8_slice_codeunits(batch["key"], len(prefix)))
