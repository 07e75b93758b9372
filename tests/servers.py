"""Real servers for the tests: an S3 server (rclone), one with conditional puts (moto), a faulty front for either."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY = "rayscan-test"
SECRET_KEY = "rayscan-test-secret"
STARTUP_SECONDS = 30


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server on this machine."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        """What a client of this server needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def bucket(self) -> str:
        """A fresh bucket's URI."""
        import boto3

        name = f"bucket-{secrets.token_hex(4)}"
        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        ).create_bucket(Bucket=name)
        return f"s3://{name}"


PORTS = range(20_000, 32_000)
"""Above those Ray gives to its workers (10002 to 19999), below those Linux gives to clients (from 32768 on)."""


def free_port() -> int:
    """A loopback port nobody listens on now.

    Not one that the kernel picks: it would be given to any client that connects before the server has started, and a
    Ray head of which one process finds its port taken ends as a whole.
    """
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running_server(command: list[str], port: int) -> Iterator[S3Server]:
    """Start a server process, wait until it listens, stop it at the end."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_listening(port, server)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()


def _wait_until_listening(port: int, server: subprocess.Popen[bytes]) -> None:
    gate = threading.Event()
    for _ in range(STARTUP_SECONDS * 20):
        if server.poll() is not None:
            raise RuntimeError(f"{server.args!r} ended with {server.returncode} before it listened")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        gate.wait(0.05)
    raise RuntimeError(f"{server.args!r} did not listen on {port} within {STARTUP_SECONDS} s")


def rclone_server(folder: Path, *options: str) -> contextlib.AbstractContextManager[S3Server]:
    """`rclone serve s3` over a folder, with these options: a real S3 server that ignores If-None-Match."""
    port = free_port()
    rclone = Path(sys.executable).with_name("rclone")
    keys = f"{ACCESS_KEY},{SECRET_KEY}"
    return running_server(
        [str(rclone), "serve", "s3", *options, "--addr", f"127.0.0.1:{port}", "--auth-key", keys, str(folder)], port
    )


def moto_server() -> contextlib.AbstractContextManager[S3Server]:
    """Moto's S3: in memory, with conditional puts."""
    port = free_port()
    moto = Path(sys.executable).with_name("moto_server")
    return running_server([str(moto), "-H", "127.0.0.1", "-p", str(port)], port)


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would steer rayscan or Ray, or say how wide a terminal is."""
    steering = ("AWS_", "RAY", "OMP_", "COLUMNS", "LINES")  # pytest-xdist sets COLUMNS
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}
