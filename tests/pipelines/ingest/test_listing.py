"""Which files of an archive may be scans, told without opening any."""

import os
import random
import socket
import string
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipelines import connections
from pipelines.contracts import CATALOG
from pipelines.errors import NotFoundError
from pipelines.ingest import bucket as bucket_room
from pipelines.ingest import listing, walk
from pipelines.ingest.filters import Filters
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
    (table,) = listed
    rows = table.to_pylist()
    assert {row["uri"].removeprefix(f"file://{archive}/"): row["format"] for row in rows} == SCANS
    assert {row["site"] for row in rows} == {"north"}
    assert listed.ignored.counts == {"hidden": 2, "other_file": len(NO_SCANS) - 2}


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
    assert keys(listed) == {"films/empty.dcm", "films/also empty"}
    assert listed.ignored.counts == {"folder_marker": 3}


STRANGE = ["films//a.dcm", "films/./b.dcm", "films/../c.dcm", "/d.dcm", "ctl\x01.dcm"]


def keys(listed: Listing) -> set[str]:
    """The keys of the rows; each must be listed once."""
    found = [uri.removeprefix(listed.store.uri("x")[:-1]) for table in listed for uri in table["uri"].to_pylist()]
    assert len(set(found)) == len(found)
    return set(found)


def put(server: S3Server, bucket: str, names: list[str]) -> None:
    client = boto3.client("s3", endpoint_url=server.endpoint)
    for name in names:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=name.encode())


@pytest.mark.parametrize("page", [3, 1000])
def test_keys_that_cannot_be_addressed_are_counted_and_the_listing_goes_on(
    s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    bucket = s3_conditional.bucket()
    good = [f"{folder}{i}.dcm" for folder in ("", "a/", "films/", "films/deep/", "films-old/", "z/") for i in range(7)]
    put(s3_conditional, bucket, [*good, *STRANGE])
    pages(monkeypatch, page)
    listed = Listing(open_store(bucket))
    assert keys(listed) == set(good)
    assert listed.ignored.counts == {"empty_segment": 4, "control_character": 1}
    assert listed.ignored.examples["control_character"] == r"ctl\x01.dcm"
    assert not listed.ignored.hides_files


def pages(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Make boto3's pages, and obstore's chunks, this small."""
    from pipelines import storage

    monkeypatch.setattr(storage, "LIST_CHUNK", size)
    client: Any = connections.s3_client()
    ask = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **asked: ask(**{"MaxKeys": size, **asked}))


@pytest.mark.parametrize("seed", range(5))
def test_ranges_hold_every_key_once(s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    # Names around "/" in the order of bytes: "a-b" < "a/b" < "a0" may not fall between two ranges.
    chance = random.Random(seed)
    names = {"/".join("".join(chance.choices("aA-0é", k=chance.randint(1, 2))) for _ in range(chance.randint(1, 4)))
             for _ in range(120)}  # fmt: skip
    strange = {name.replace("/", "//", 1) for name in chance.sample(sorted(names), 20) if "/" in name}
    bucket = s3_conditional.bucket()
    put(s3_conditional, bucket, [f"some/archive/{name}" for name in sorted(names | strange)])
    put(s3_conditional, bucket, ["some/archive-2/x", "some/a", "z"])
    pages(monkeypatch, 4)
    monkeypatch.setattr(bucket_room, "STRANGE_PAGES", 2)
    monkeypatch.setattr(bucket_room, "MOST_RANGES", chance.choice([3, 64]))
    listed = Listing(open_store(f"{bucket}/some/archive"))
    assert keys(listed) == names
    assert listed.ignored.total == len(strange)


def test_a_server_that_ignores_start_after_is_listed_as_one(
    s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:

    bucket = s3_conditional.bucket()
    good = [f"{folder}/{i}.dcm" for folder in string.ascii_lowercase for i in range(3)]
    put(s3_conditional, bucket, [*good, *STRANGE])
    client: Any = connections.s3_client()
    ask = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **asked: ask(**{**asked, "StartAfter": ""}))
    listed = Listing(open_store(bucket))
    assert keys(listed) == set(good)
    assert listed.ignored.total == len(STRANGE)


def test_what_the_store_refuses_is_told(s3_conditional: S3Server, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such bucket"):
        list(Listing(open_store("s3://absent-bucket/films")))
    with pytest.raises(NotFoundError, match="no such folder"):
        list(Listing(open_store(str(tmp_path / "absent"))))


NAMES = [b"gr\xf6\xdfe.dcm", b"folder \xe9/film.dcm", b"ctl\x01.dcm", b"two\nlines.dcm"]


def test_a_disk_that_has_everything(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "archive")
    write(tmp_path / "archive", {"good/a.dcm": b"x", "good/b": b"x", "DICOMDIR;1": b"x", "film.dcm;1": b"x"})
    for name in NAMES:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    archive = tmp_path / "archive"
    (archive / "good/self").symlink_to(archive)
    (archive / "good/me").symlink_to("me")
    (archive / "good/gone").symlink_to("nothing")
    write(tmp_path / "elsewhere", {"c.dcm": b"x"})
    (archive / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(archive / "good")
    os.mkfifo(archive / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(archive / "s"))
        listed = Listing(open_store(str(archive)))
        found = keys(listed)
    assert found == {"good/a.dcm", "good/b", "film.dcm;1", "linked/c.dcm", "linked/back/a.dcm", "linked/back/b"}
    assert listed.ignored.counts == {
        "other_file": 1,
        "not_utf8": 2,
        "control_character": 2,
        "link_loop": 4,  # each of good's two, seen again through linked/back
        "broken_link": 2,
        "not_a_file": 2,
    }
    assert r"gr\xf6\xdfe.dcm" in listed.ignored.examples["not_utf8"] or "folder" in listed.ignored.examples["not_utf8"]
    assert listed.ignored.in_words().isprintable()


def test_links_between_two_folders_end(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.dcm": b"x", "b/2.dcm": b"x"})
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a")
    listed = Listing(open_store(str(tmp_path)))
    assert keys(listed) == {"a/1.dcm", "b/2.dcm", "a/to_b/2.dcm", "b/to_a/1.dcm"}
    assert listed.ignored.counts == {"link_loop": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    write(tmp_path, {"open/1.dcm": b"x", "locked/2.dcm": b"x"})
    (tmp_path / "locked").chmod(0)
    listed = Listing(open_store(str(tmp_path)))
    try:
        assert keys(listed) == {"open/1.dcm"}
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert listed.ignored.counts == {"unreadable_folder": 1}
    assert listed.ignored.hides_files


def test_a_folder_that_fails_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may read everything: here the system refuses.
    write(tmp_path, {"open/1.dcm": b"x", "locked/2.dcm": b"x"})
    scan = os.scandir

    def refused(path: str) -> Any:
        if path.endswith("/locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(walk.os, "scandir", refused)
    listed = Listing(open_store(str(tmp_path)))
    assert keys(listed) == {"open/1.dcm"}
    assert (listed.ignored.counts, listed.ignored.hides_files) == ({"unreadable_folder": 1}, True)
    assert listed.ignored.examples == {"unreadable_folder": "locked/"}


def test_etags_are_those_that_fetch_compares(archive: Path) -> None:
    store = open_store(str(archive))
    for table in list_archive(store):
        for uri, etag, modified in zip(*(table[c].to_pylist() for c in ("uri", "etag", "modified")), strict=True):
            info = store.head(uri.removeprefix(f"{store.root}/"))
            assert (info.etag, info.modified) == (etag, modified)


def test_filters(archive: Path) -> None:
    def found(**chosen: Any) -> tuple[set[str], dict[str, int]]:
        listed = Listing(open_store(str(archive)), filters=Filters(**chosen))
        names = keys(listed)
        return names, {kind: n for kind, n in listed.ignored.counts.items() if kind in {"excluded", "older"}}

    assert found(include=("*.dcm", "sub*/**")) == ({"film.dcm", "sub dir/größe 1.jpeg"}, {"excluded": 5})
    assert found(exclude=("film.*",)) == (
        set(SCANS) - {"film.dcm", "film.DICOM", "film.PNG", "film.jpg"},
        {"excluded": 4},
    )
    assert found(include=("film.*",), exclude=("*.[Pj]*",)) == ({"film.dcm", "film.DICOM"}, {"excluded": 5})
    for name in SCANS:
        os.utime(archive / name, (1e9, 1e9) if name != "film.dcm" else None)
    assert found(since="1d") == ({"film.dcm"}, {"older": len(SCANS) - 1})
    assert found(since="2001-09-09T01:46:40") == (set(SCANS), {})
    assert found(since="2001-09-10") == ({"film.dcm"}, {"older": len(SCANS) - 1})


def test_it_is_streamed_in_tables_of_the_contract(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(archive, {f"many/{i}.png": b"x" for i in range(200)})
    monkeypatch.setattr(listing, "ROWS_PER_CHUNK", 50)
    monkeypatch.setattr(walk, "BATCH", 50)
    tables = list(list_archive(open_store(str(archive))))
    assert len(tables) > 1
    assert all(table.schema.equals(CATALOG) for table in tables)
    ids = [scan for table in tables for scan in table["scan_id"].to_pylist()]
    assert len(set(ids)) == len(ids) == 200 + len(SCANS)


def test_an_empty_archive_lists_nothing(tmp_path: Path) -> None:
    assert list(list_archive(open_store(str(tmp_path)))) == []
