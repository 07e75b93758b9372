"""Which files of an archive may be scans, told without opening any."""

from pathlib import Path

import boto3
import pytest

from pipelines.contracts import CATALOG
from pipelines.errors import InputError
from pipelines.ingest import listing
from pipelines.ingest.listing import Listing, list_archive
from pipelines.storage import open_store
from tests.pipelines.decoding.films import write
from tests.servers import S3Server

SCANS = {
    "1.2.840.113619.2.5": None,
    "IMG0001": None,
    "film.dcm": "dicom",
    "film.DICOM": "dicom",
    "film.PNG": "png",
    "film.jpg": "jpeg",
    "sub dir/größe 1.jpeg": "jpeg",
}
NO_SCANS = [".hidden/film.jpeg", "a/.DS_Store", "a.csv", "b.JSON", "DICOMDIR", "a/readme", "thumbs.db", "c.parquet"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "archive", dict.fromkeys([*SCANS, *NO_SCANS], b"x"))


def test_candidates_are_told_by_what_they_are_not(archive: Path) -> None:
    listed = Listing(open_store(str(archive)), site="north")
    (rows,) = listed
    assert {row["uri"].removeprefix(f"file://{archive}/"): row["format"] for row in rows} == SCANS
    assert {row["site"] for row in rows} == {"north"}
    assert listed.ignored == len(NO_SCANS)


def test_the_same_on_s3(s3: S3Server, archive: Path) -> None:
    store = open_store(f"{s3.bucket()}/some/archive")
    for path in archive.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(archive)), path.read_bytes())
    (table,) = list_archive(store)
    assert dict(zip(table["uri"].to_pylist(), table["format"].to_pylist(), strict=True)) == {
        store.uri(key): kind for key, kind in SCANS.items()
    }


def test_folder_markers_are_no_scans_but_empty_files_are(s3_conditional: S3Server) -> None:
    bucket = s3_conditional.bucket()
    client = boto3.client("s3", endpoint_url=s3_conditional.endpoint)
    for key in ("films/", "films/odd.dcm/", "films/empty.dcm", "films/also empty", "nothing below/"):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"")
    listed = Listing(open_store(bucket))
    (rows,) = listed
    assert {row["uri"] for row in rows} == {f"{bucket}/films/empty.dcm", f"{bucket}/films/also empty"}
    assert listed.ignored == 3


def test_a_key_that_cannot_be_addressed_is_named_in_one_line(s3_conditional: S3Server) -> None:
    bucket = s3_conditional.bucket()
    client = boto3.client("s3", endpoint_url=s3_conditional.endpoint)
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="films//a.dcm", Body=b"x")
    with pytest.raises(InputError, match=r"films//a\.dcm.*rename") as caught:
        list(list_archive(open_store(bucket)))
    assert "\n" not in str(caught.value)


def test_it_is_streamed_in_tables_of_the_contract(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(archive, {f"many/{i}.png": b"x" for i in range(200)})
    monkeypatch.setattr(listing, "ROWS_PER_CHUNK", 50)
    tables = list(list_archive(open_store(str(archive))))
    assert len(tables) > 1
    assert all(table.schema.equals(CATALOG) for table in tables)
    ids = [scan for table in tables for scan in table["scan_id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 200 + len(SCANS)


def test_an_empty_archive_lists_nothing(tmp_path: Path) -> None:
    assert list(list_archive(open_store(str(tmp_path)))) == []
