"""Real servers for the tests: an S3 server (rclone), one with conditional puts (moto), Azure's emulator (Azurite)."""

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

ACCESS_KEY = "rayscan-test"
SECRET_KEY = "rayscan-test-secret"
ACCOUNT = "rayscantest"
STARTUP_SECONDS = 30
SERVERS = {"rclone": "s3", "moto": "s3_conditional", "azurite": "azure"}
"""Each with the fixture of `conftest.py` that has this process's environment set up to use it."""
AZURITE = Path(__file__).parents[1] / ".azurite" / "node_modules" / ".bin"


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


@dataclass(frozen=True)
class AzureServer:
    """A running Azurite, Microsoft's emulator of Azure's blob store."""

    endpoint: str
    """With the account as its path."""
    key: str
    """Of the account, in base64."""

    def environment(self) -> dict[str, str]:
        """What a client of this server needs in its environment."""
        return {
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
        }

    def bucket(self) -> str:
        """A fresh container's URI. obstore makes none, so the request is signed here, by Azure's shared key."""
        name = f"container-{secrets.token_hex(4)}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = "PUT" + "\n" * 12 + "".join(f"{header}:{value}\n" for header, value in headers.items())
        signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.digest(base64.b64decode(self.key), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"{self.endpoint}/{name}?restype=container"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()
        return f"az://{name}"


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
def running_server(command: list[str], port: int, **environment: str) -> Iterator[S3Server]:
    """Start a server process, wait until it listens, stop it at the end."""
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
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


def find_azurite() -> str | None:
    """The program `azurite-blob`: named by RAYSCAN_AZURITE, put here by `make azurite`, or on PATH."""
    return (
        os.environ.get("RAYSCAN_AZURITE")
        or shutil.which("azurite-blob", path=str(AZURITE))
        or shutil.which("azurite-blob")
    )


@contextlib.contextmanager
def azurite_server(program: str) -> Iterator[AzureServer]:
    """Azurite in memory, with one account of a random key; it is told to report nothing to its makers."""
    port, key = free_port(), base64.b64encode(secrets.token_bytes(64)).decode()
    command = [program, "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    with running_server(command, port, AZURITE_ACCOUNTS=f"{ACCOUNT}:{key}") as server:
        yield AzureServer(f"{server.endpoint}/{ACCOUNT}", key)


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that would steer rayscan or Ray, or say how wide a terminal is."""
    steering = ("AWS_", "AZURE_", "RAY", "OMP_", "COLUMNS", "LINES")  # pytest-xdist sets COLUMNS
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}
