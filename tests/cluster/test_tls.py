"""Ray over TLS, with certificates made as cluster/README.md says: who has one comes in, who has none does not."""

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.ray_head import Head, running_head

README = Path(__file__).parents[2] / "cluster" / "README.md"
SECONDS = 120
DRIVER = """
import sys
import ray
from cluster.session import ray_session
with ray_session(sys.argv[1]) as session:
    answer = ray.get(ray.remote(lambda: ray.get_runtime_context().get_node_id()).remote())
    print("ran on", answer)
"""


def documented_commands() -> list[str]:
    """The commands of the README's section on encryption, in order."""
    section = README.read_text().partition("**Encryption between nodes.**")[2].partition("\n## ")[0]
    return re.findall(r"^    (.+)$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that the last documented command exports."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certificates")
    shown = subprocess.run(
        ["bash", "-euc", "\n".join([*documented_commands(), "env"])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.partition("=")[::2] for line in shown.stdout.splitlines())
    return {name: value for name, value in pairs if name.startswith(("RAY_TLS_", "RAY_USE_TLS"))}


@pytest.fixture(scope="module")
def encrypted(certificates: dict[str, str]) -> Iterator[Head]:
    with running_head(**certificates) as head:
        yield head


def drive(head: Head, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A driver that runs one task there."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, head.address],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def test_a_driver_with_a_certificate_runs_a_task(encrypted: Head) -> None:
    shown = drive(encrypted, encrypted.environment())
    assert shown.stdout.startswith("ran on "), shown.stderr


def test_a_driver_without_one_is_told_so_although_it_has_the_token(
    encrypted: Head, certificates: dict[str, str]
) -> None:
    environment = {name: value for name, value in encrypted.environment().items() if name not in certificates}
    shown = drive(encrypted, environment)
    assert shown.returncode != 0
    assert "speaks TLS: set RAY_USE_TLS" in shown.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("who", ["owner", "stranger"])
def test_the_control_store_answers_only_who_shows_a_certificate(
    encrypted: Head, certificates: dict[str, str], who: str
) -> None:
    context = ssl.create_default_context(cafile=certificates["RAY_TLS_CA_CERT"])
    context.set_alpn_protocols(["h2"])
    if who == "owner":
        context.load_cert_chain(certificates["RAY_TLS_SERVER_CERT"], certificates["RAY_TLS_SERVER_KEY"])
    host, _, port = encrypted.address.rpartition(":")
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),  # how a server hangs up on a stranger
        socket.create_connection((host, int(port)), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        answer = secure.recv(1)  # of HTTP/2's settings, which a server sends first
    assert bool(answer) == (who == "owner")
