"""Ray over TLS, with certificates made as cluster/README.md says: who has one comes in, who has none does not."""

import re
import shutil
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


def test_a_driver_without_one_is_refused_although_it_has_the_token(
    encrypted: Head, certificates: dict[str, str]
) -> None:
    environment = {name: value for name, value in encrypted.environment().items() if name not in certificates}
    shown = drive(encrypted, environment)
    assert shown.returncode != 0
    assert "InputError" in shown.stderr
    assert "ran on" not in shown.stdout


def test_a_stranger_without_a_certificate_gets_no_answer_from_the_control_store(
    encrypted: Head, certificates: dict[str, str]
) -> None:
    """`openssl s_client` speaks TLS, as Ray does, and only lacks what the authority has signed."""
    command = ["openssl", "s_client", "-connect", encrypted.address, "-CAfile", certificates["RAY_TLS_CA_CERT"]]
    own = ["-cert", certificates["RAY_TLS_SERVER_CERT"], "-key", certificates["RAY_TLS_SERVER_KEY"]]
    asked = {}
    for who, more in {"owner": own, "stranger": []}.items():
        shown = subprocess.run(
            [*command, *more], input="", capture_output=True, text=True, check=False, timeout=SECONDS
        )
        asked[who] = shown.stdout + shown.stderr
    assert "Verify return code: 0 (ok)" in asked["owner"], "the server's own certificate is in order"
    assert "certificate required" in asked["stranger"]
