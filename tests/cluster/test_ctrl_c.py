"""Ctrl-C while a large archive is listed, planned or catalogued: the command is gone within two seconds.

Asserted are CPU-seconds, because a busy machine gives a process its turn late; the seconds that passed are printed.
The archive is a server that only answers listings: of 400,000 films, a thousand a page.
"""

import http.server
import os
import resource
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.nights import wait_for
from tests.pace import pace
from tests.pipelines.bundles import save_untrained
from tests.servers import S3Server, clean_environment

PAGES = 400
PAGE = 1000
SECONDS = 2.0
"""From SIGINT to the exit, of a process's CPU."""
AGES = 45.0
"""Less than the server hangs; more than any machine takes that does not wait for it."""

_FILM = (
    "<Contents><Key>films/{n:09d}.dcm</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{n:032x}&quot;</ETag><Size>1000</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Archive(http.server.ThreadingHTTPServer):
    """Lists films; `pages` says how many pages it has given so far, `stuck` that it answers no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.pages = 0
        self.stuck = threading.Event()


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Archive

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        page = int(query.get("continuation-token", ["0"])[0])
        if "max-keys" not in query and page >= 20 and self.server.stuck.is_set():
            threading.Event().wait(60)
        films = "".join(_FILM.format(n=n) for n in range(page * PAGE, (page + 1) * PAGE))
        more = f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if page + 1 < PAGES else ""
        truncated = "true" if more else "false"
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>archive</Name><Prefix></Prefix><KeyCount>{PAGE}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{truncated}</IsTruncated>{more}{films}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.pages = max(self.server.pages, page + 1)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("bundle")).folder


def interrupted(command: list[str], archive: Archive, after_pages: int) -> None:
    """Send SIGINT to a command after this many pages: it must be gone at once, with exit code 130 and one line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**clean_environment(), **S3Server(f"http://127.0.0.1:{archive.server_port}").environment()}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:

            def ended() -> bool:
                assert process.poll() is None, process.communicate()[1]
                return False

            wait_for(lambda: archive.pages >= after_pages, unless=ended)
            used = psutil.Process(process.pid).cpu_times()
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            _, stderr = process.communicate(timeout=AGES)
            seconds = time.monotonic() - sent
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - used.user - used.system
    print(f"{command[1]} after {after_pages} pages: {seconds:.2f} s from SIGINT to the exit, {cpu:.2f} s of CPU")
    assert process.returncode == 130, stderr
    assert "interrupted; run the same command again" in stderr
    assert "Traceback" not in stderr
    assert cpu < SECONDS * pace()


@pytest.mark.parametrize("after_pages", [20, PAGES], ids=["listing", "planning"])
@pytest.mark.parametrize("verb", ["score", "dry-run", "catalog"])
def test_it_ends_at_once(
    rayscan_command: str, archive: Archive, bundle: Path, tmp_path: Path, verb: str, after_pages: int
) -> None:
    out = tmp_path / "out"
    score = [rayscan_command, "score", "s3://archive", "--model", str(bundle), "--out", str(out)]
    command = {
        "score": score,
        "dry-run": [*score, "--dry-run"],
        "catalog": [rayscan_command, "catalog", "s3://archive", "--out", str(out)],
    }[verb]
    interrupted(command, archive, after_pages)
    assert not list(out.rglob("plan.json"))
    assert not list(out.rglob("catalog.json"))


def test_a_store_that_does_not_answer_keeps_nobody_waiting(
    rayscan_command: str, archive: Archive, tmp_path: Path
) -> None:
    archive.stuck.set()
    command = [rayscan_command, "catalog", "s3://archive", "--out", str(tmp_path / "out")]
    interrupted(command, archive, 20)
