"""A front for a real S3 server that breaks as real ones do: throttles, cuts connections, is slow, loses a bucket."""

import contextlib
import http.client
import http.server
import random
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.servers import S3Server

_KEPT = {"etag", "last-modified", "content-type", "content-range", "accept-ranges"}


@dataclass
class Faults:
    """What goes wrong from now on; change it while requests come in."""

    first: int = 0
    """So many requests from now on are answered 503 SlowDown."""
    slow_down: float = 0.0
    """Share of requests answered 503 SlowDown."""
    cut: float = 0.0
    """Share of objects whose connection ends in the middle of their body."""
    latency: float = 0.0
    """Seconds added to each request."""
    throttled: str | None = None
    """Bucket whose every request is answered 503 SlowDown."""
    gone: str | None = None
    """Bucket that is no longer there."""
    denied: bool = False
    """Credentials have expired."""
    conditional: tuple[int, str] | None = None
    """Status and code that answer a put with If-None-Match: the store knows no conditional put."""
    every: tuple[int, str] | None = None
    """Status and code that answer every request."""
    forbidden: tuple[str, int, str] | None = None
    """Path that requests begin with, status and code that answer them."""
    injected: Counter[str] = field(default_factory=Counter)
    """How often each fault was injected."""
    _chance: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refusal(self, bucket: str) -> tuple[str, int, str] | None:
        """Fault, status and S3 error code of the next request to a bucket; None to answer it."""
        with self._lock:
            if self.every:
                return "every", *self.every
            if self.denied:
                return "denied", 403, "ExpiredToken"
            if self.gone == bucket:
                return "gone", 404, "NoSuchBucket"
            if self.throttled == bucket:
                return "throttled", 503, "SlowDown"
            self.first -= 1
            if self.first >= 0 or self._chance.random() < self.slow_down:
                return "slow_down", 503, "SlowDown"
        return None

    def cuts(self) -> bool:
        """Whether the next object is cut off."""
        with self._lock:
            return self._chance.random() < self.cut


@contextlib.contextmanager
def faulty(server: S3Server, faults: Faults) -> Iterator[S3Server]:
    """The same server behind a front with these faults."""
    with _Server(server, faults) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        try:
            yield S3Server(f"http://127.0.0.1:{front.server_port}")
        finally:
            front.shutdown()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: S3Server, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Front)
        self.upstream = urllib.parse.urlsplit(upstream.endpoint)
        self.faults = faults

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up."""


class _Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        faults = self.server.faults
        if faults.latency:
            threading.Event().wait(faults.latency)
        refusal = faults.refusal(urllib.parse.urlsplit(self.path).path.split("/")[1])
        if faults.forbidden and self.path.startswith(faults.forbidden[0]):
            refusal = ("forbidden", *faults.forbidden[1:])
        if faults.conditional and "If-None-Match" in self.headers:
            refusal = ("conditional", *faults.conditional)
        if refusal is None:
            self._pass_on(body)
            return
        fault, status, code = refusal
        faults.injected[fault] += 1
        content = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 (names the base class calls)

    def _pass_on(self, body: bytes) -> None:
        upstream, faults = self.server.upstream, self.server.faults
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in _KEPT:
                self.send_header(name, value)
        head = self.command == "HEAD"
        self.send_header("Content-Length", answer.getheader("Content-Length", "0") if head else str(len(content)))
        self.end_headers()
        if self.command == "GET" and len(content) > 1000 and faults.cuts():
            faults.injected["cut"] += 1
            content = content[: len(content) // 2]
            self.close_connection = True
        if not head:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""
