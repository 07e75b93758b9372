"""An S3 Inventory in place of a listing: the catalogue that comes of it is that of the listing."""

import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.catalog import CatalogSettings, build_catalog, read_catalog
from pipelines.ingest.catalog_info import catalog_source
from pipelines.ingest.filters import Filters
from pipelines.storage import open_store
from tests.servers import S3Server

KEYS = [
    "films/a b.dcm",
    "films/größe+1.dcm",
    "films/x%41.dcm",
    "films/y",
    "films//z.dcm",
    "films/notes.txt",
    "other/o.dcm",
]
FIELDS = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"


@pytest.fixture
def bucket(s3_conditional: S3Server) -> str:
    uri = s3_conditional.bucket()
    client = boto3.client("s3", endpoint_url=s3_conditional.endpoint)
    for key in KEYS:
        client.put_object(Bucket=uri[5:], Key=key, Body=key.encode())
    return uri


def rows(bucket: str, server: S3Server) -> list[dict[str, Any]]:
    """What S3 would write of the bucket: each object, an older version of each, and a delete marker."""
    listed = boto3.client("s3", endpoint_url=server.endpoint).list_objects_v2(Bucket=bucket[5:])["Contents"]
    found: list[dict[str, Any]] = []
    for entry in listed:
        row = {
            "bucket": bucket[5:],
            "key": entry["Key"],
            "version_id": "v",
            "is_latest": True,
            "is_delete_marker": False,
            "size": entry["Size"],
            "last_modified_date": entry["LastModified"],
            "e_tag": entry["ETag"].strip('"'),
        }
        found += [row, {**row, "is_latest": False, "e_tag": "old"}]
    gone = {"key": "films/gone.dcm", "is_delete_marker": True, "size": None, "e_tag": None}
    return [*found, {**found[0], **gone}]


def write_inventory(bucket: str, server: S3Server, kind: str, fields: str = FIELDS) -> str:
    found = rows(bucket, server)
    if kind == "CSV":
        names = {
            "Key": "key",
            "Bucket": "bucket",
            "VersionId": "version_id",
            "IsLatest": "is_latest",
            "IsDeleteMarker": "is_delete_marker",
            "Size": "size",
            "LastModifiedDate": "last_modified_date",
            "ETag": "e_tag",
        }
        lines = [",".join(f'"{_text(row[names[field.strip()]])}"' for field in fields.split(",")) for row in found]
        data = gzip.compress("\n".join(lines).encode())
    else:
        table = pa.Table.from_pylist(found)
        moment = table.schema.get_field_index("last_modified_date")
        table = table.set_column(moment, "last_modified_date", table["last_modified_date"].cast(pa.timestamp("ms")))
        sink = io.BytesIO()
        pq.write_table(table, sink)
        data = sink.getvalue()
    store = open_store(bucket)
    store.put("inv/data/part", data)
    manifest = {
        "sourceBucket": bucket[5:],
        "destinationBucket": f"arn:aws:s3:::{bucket[5:]}",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": fields,
        "files": [{"key": "inv/data/part", "size": len(data)}],
    }
    store.put("inv/2026-11-27T01-00Z/manifest.json", json.dumps(manifest).encode())
    return f"{bucket}/inv/2026-11-27T01-00Z/manifest.json"


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else quote_plus(value, safe="/") if isinstance(value, str) else str(value)


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
@pytest.mark.parametrize("below", ["", "/films"])
def test_it_gives_the_catalogue_of_the_listing(
    s3_conditional: S3Server, bucket: str, tmp_path: Path, kind: str, below: str
) -> None:
    manifest = write_inventory(bucket, s3_conditional, kind)
    listed, named = str(tmp_path / "listed"), str(tmp_path / "named")
    filters = Filters(exclude=("inv/**",))
    build_catalog(bucket + below, listed, CatalogSettings(filters=filters))
    second = build_catalog(bucket + below, named, CatalogSettings(filters=filters, inventory=manifest))
    columns = ["scan_id", "uri", "etag", "size", "format"]
    assert read_catalog(named, columns).sort_by("uri").equals(read_catalog(listed, columns).sort_by("uri"))
    assert {kind: entry["count"] for kind, entry in second.ignored_by.items()} == {"empty_segment": 1, "other_file": 1}
    assert catalog_source(open_store(named)) is None, "an inventory is of another day: what it lacks is not gone"
    times = read_catalog(named, ["modified"])["modified"].to_pylist()
    assert all(abs((time - datetime.now(UTC)).total_seconds()) < 600 for time in times)


def test_wrong_ones_are_refused(s3_conditional: S3Server, bucket: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")

    def refused(manifest: str, message: str, archive: str = bucket) -> None:
        with pytest.raises(InputError, match=message) as caught:
            build_catalog(archive, out, CatalogSettings(inventory=manifest))
        assert "\n" not in str(caught.value)

    refused(write_inventory(bucket, s3_conditional, "CSV", "Bucket, Key, Size"), "lacks LastModifiedDate, ETag")
    manifest = write_inventory(bucket, s3_conditional, "CSV")
    refused(manifest, "an inventory of the bucket bucket-", "s3://another")
    refused(manifest, "an inventory of the bucket bucket-", str(tmp_path))
    refused(f"{bucket}/films/y", "no manifest.json")
    open_store(bucket).put("inv/data/part", b"\x1f\x8brubbish")
    refused(manifest, "cannot be read")
    open_store(bucket).delete("inv/data/part")
    with pytest.raises(NotFoundError, match="not there"):
        build_catalog(bucket, out, CatalogSettings(inventory=manifest))
