"""A million objects catalogued, in a process of its own: at most 30 CPU-seconds and 1 GiB.

From local disk, from a bucket of 500 folders and from an S3 Inventory. The bucket is a stand-in that answers listings
from memory, in a process of its own, whose CPU time does not count.
"""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.pace import pace
from tests.servers import free_port, running_server

OBJECTS = int(os.environ.get("RAYSCAN_BENCH_ROWS", "1000000"))
PER_FOLDER = 2000
CPU_SECONDS = 30 * OBJECTS / 1_000_000
GIBIBYTES = 1

CATALOG = """
import json, resource, sys, time
from pipelines.ingest.catalog import CatalogSettings, build_catalog
archive, out, inventory = sys.argv[1:]
started = time.perf_counter()
summary = build_catalog(archive, out, CatalogSettings(inventory=inventory or None))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"scans": summary.scans, "ignored": summary.ignored, "cpu": used.ru_utime + used.ru_stime,
                  "seconds": time.perf_counter() - started, "gib": used.ru_maxrss / 2**20}))
"""


def key(number: int) -> str:
    return f"site/{number // PER_FOLDER:05d}/film-{number:08d}-1.2.840.113619.2.5.dcm"


def catalogued(archive: str, out: Path, capsys: pytest.CaptureFixture[str], inventory: str = "") -> None:
    """Catalogue it, print what it cost, and hold it to the limits."""
    command = [sys.executable, "-c", CATALOG, archive, str(out), inventory]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with capsys.disabled():
        print(f"\n{result['scans']:,} objects catalogued: {result['cpu']:.1f} CPU-s,", end=" ")
        print(f"{result['seconds']:.1f} s, peak {result['gib']:.2f} GiB")
    assert result["scans"] == OBJECTS
    assert result["gib"] <= GIBIBYTES
    assert result["cpu"] <= CPU_SECONDS * pace()


@pytest.mark.bench
def test_local_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(OBJECTS):
        path = tmp_path / "archive" / key(number)
        if number % PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    catalogued(str(tmp_path / "archive"), tmp_path / "out", capsys)
    shutil.rmtree(tmp_path / "archive")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    with running_server([sys.executable, "-m", __name__, str(port)], port) as server:
        yield server.endpoint


@pytest.mark.bench
def test_a_bucket(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set(endpoint, monkeypatch)
    catalogued("s3://films", tmp_path / "out", capsys)


@pytest.mark.bench
def test_an_inventory(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set(endpoint, monkeypatch)
    with gzip.open(tmp_path / "part.csv.gz", "wt", compresslevel=1, newline="") as file:
        write = csv.writer(file, quoting=csv.QUOTE_ALL)
        write.writerows(
            ["films", key(n), 5_000_000 + n, "2026-11-01T03:00:00.000Z", f"{n:032x}"] for n in range(OBJECTS)
        )
    fields = "Bucket, Key, Size, LastModifiedDate, ETag"
    manifest = {"sourceBucket": "films", "fileFormat": "CSV", "fileSchema": fields, "files": [{"key": "x/part.csv.gz"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    catalogued("s3://films", tmp_path / "out", capsys, str(tmp_path / "manifest.json"))


def _set(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "REGION": "us-east-1",
             "DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in known.items():
        monkeypatch.setenv(f"AWS_{name}", value)


# --- the stand-in: run as a program, it answers ListObjectsV2 of one bucket


class Bucket(BaseHTTPRequestHandler):
    """Keys are `key(0)` to `key(OBJECTS - 1)`, in the order of bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, most = asked.get("prefix", ""), min(1000, int(asked.get("max-keys", 1000)))
        if "delimiter" in asked:
            body = _folders(prefix)
        else:
            body = _page(_after(asked.get("continuation-token") or asked.get("start-after", "")), most)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _folders(prefix: str) -> bytes:
    names = {"": ["site/"], "site/": [f"site/{n:05d}/" for n in range(-(-OBJECTS // PER_FOLDER))]}.get(prefix, [])
    return _answer("".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in names), "")


def _after(name: str) -> int:
    """The number of the first key after a name: a key, or the folder of some."""
    if found := re.search(r"film-(\d{8})", name):
        return int(found[1]) + 1
    folder = re.search(r"(\d{5})", name)
    return int(folder[1]) * PER_FOLDER if folder else 0


@lru_cache(maxsize=16)
def _page(first: int, most: int) -> bytes:
    numbers = range(first, min(first + most, OBJECTS))
    entries = "".join(
        f"<Contents><Key>{key(n)}</Key><LastModified>2026-11-01T03:00:00.000Z</LastModified>"
        f"<ETag>&quot;{n:032x}&quot;</ETag><Size>{5_000_000 + n}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for n in numbers
    )
    return _answer(entries, key(numbers[-1]) if numbers and numbers[-1] + 1 < OBJECTS else "")


def _answer(entries: str, following: str) -> bytes:
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{following}</NextContinuationToken>"
    said = more if following else "<IsTruncated>false</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult><Name>films</Name>{said}{entries}</ListBucketResult>'.encode()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Bucket).serve_forever()
