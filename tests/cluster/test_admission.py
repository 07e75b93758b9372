"""Who is let into a cluster by its address, on a real head with a token; what is told."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.admission import ask
from pipelines.errors import InputError
from tests.cluster.ray_head import BIN, Head
from tests.servers import moto_server

SECONDS = 120


def doctor(address: str, env: dict[str, str], code: int = 2) -> str:
    """What the verb says, which must be one line, with this exit code."""
    done = subprocess.run(
        [BIN / "rayscan", "doctor", "--address", address],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    return line


def with_token(head: Head, path: Path) -> dict[str, str]:
    return head.environment() | {"RAY_AUTH_TOKEN_PATH": str(path)}


@pytest.fixture
def silent() -> Iterator[str]:
    """Something takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []
        threading.Thread(target=lambda: kept.append(server.accept()[0]), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


def test_a_wrong_token_is_told(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("f" * 32)
    assert "wants its token, and not another or none: copy the token" in doctor(head.address, with_token(head, wrong))


def test_no_token_is_told(head: Head, tmp_path: Path) -> None:
    env = head.environment() | {"HOME": str(tmp_path)}
    env.pop("RAY_AUTH_TOKEN_PATH")
    assert "wants its token" in doctor(head.address, env)


def test_a_token_file_that_is_not_there_is_told(head: Head, tmp_path: Path) -> None:
    assert "RAY_AUTH_TOKEN_PATH names no file" in doctor(head.address, with_token(head, tmp_path / "none"))


def test_what_is_no_ray_is_told(head: Head, silent: str) -> None:
    with moto_server() as web:
        line = doctor(web.endpoint.removeprefix("http://"), head.environment())
    assert "is no Ray that this machine can speak to (UNAVAILABLE)" in line
    assert "says nothing for 5 s" in doctor(silent, head.environment(), code=1), "it may be a head, and busy"


def test_a_proxy_for_the_web_does_not_come_between(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match="wants its token"):
        ask(head.address)
