"""A Ray cluster of one node with a token of its own, started and ended as processes of this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers import clean_environment, free_port

START_SECONDS = 90
STOP_SECONDS = 8
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head node."""

    address: str
    dashboard: str
    agent: str
    """Of its own node: it starts jobs and tells of logs, too."""
    folder: Path
    """Ray's temporary folder is `ray` in here."""
    token: Path
    extra: Mapping[str, str]
    """What else this head and its clients have in their environment."""

    def environment(self) -> dict[str, str]:
        """A client on this machine that has the token, and whose Ray would find this head by itself."""
        return environment(self.folder) | {"RAY_AUTH_TOKEN_PATH": str(self.token), **self.extra}


def environment(folder: Path) -> dict[str, str]:
    """A process that sees only this folder as home and as Ray's place for temporary files."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return clean_environment() | {"HOME": str(folder), "RAY_TMPDIR": str(folder), "PATH": path}


@contextlib.contextmanager
def running_head(*options: str, **extra: str) -> Iterator[Head]:
    """Start a head on free ports, outside those Ray gives to workers (10002-19999); end exactly its processes.

    `options` of `ray start` win over those given here; `extra` are further variables of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as name:  # short: sockets
        folder = Path(name)
        token = folder / "token"
        token.write_text("0123456789abcdef" * 2)
        token.chmod(0o600)
        port, dashboard, agent = free_port(), free_port(), free_port()
        head = Head(
            address=f"127.0.0.1:{port}",
            dashboard=f"http://127.0.0.1:{dashboard}",
            agent=f"http://127.0.0.1:{agent}",
            folder=folder,
            token=token,
            extra=extra,
        )
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={agent}"),
            *options,
        ]
        with _started(command, head, folder / "start.log"):
            yield head


@contextlib.contextmanager
def running_node(head: Head, *options: str) -> Iterator[None]:
    """Start one more node of this cluster on this machine; end exactly its processes."""
    command = [
        *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        *(f"--address={head.address}", f"--dashboard-agent-listen-port={free_port()}", *options),
    ]
    with _started(command, head, head.folder / f"node-{free_port()}.log"):
        yield


@contextlib.contextmanager
def _started(command: list[str], head: Head, log: Path) -> Iterator[None]:
    """Run this `ray start` while the context lasts.

    It is tried twice: Ray gives each of its processes 30 s to come up, which a busy machine may not keep.
    """
    process = _start(command, head, log)
    try:
        if not _runs(process, log):
            _end(process)
            process = _start(command, head, log)
            assert _runs(process, log), log.read_text()
        yield
    finally:
        _end(process)


def _start(command: list[str], head: Head, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=head.environment() | {"RAY_AUTH_MODE": "token"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _runs(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether Ray is up, once it is or is not in time."""
    up = lambda: "Ray runtime started" in log.read_text()  # noqa: E731
    with contextlib.suppress(AssertionError):
        wait_for(lambda: up() or process.poll() is not None, START_SECONDS)
    return up()


def _end(process: subprocess.Popen[bytes]) -> None:
    mine = processes_below(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for pid in alive(mine):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Poll until the condition holds; fail on a timeout."""
    gate, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s"
        gate.wait(0.1)


def processes_below(pid: int) -> dict[int, str]:
    """A process and all its descendants, each with the time it started: together they name it for good."""
    parents: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                starts[int(entry.name)] = fields[19]
    found, todo = {}, [pid]
    while todo:
        here = todo.pop()
        if here in starts:
            found[here] = starts[here]
        todo += parents.get(here, [])
    return found


def alive(processes: dict[int, str]) -> list[int]:
    """The processes that still run; a zombie does not count."""
    running = []
    for pid, start in processes.items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == start and fields[0] != "Z":
                running.append(pid)
    return running
