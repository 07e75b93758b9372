"""Two machines made of one: a head and a worker that share nothing but a wire and an S3 server.

Each has its own network, processes, home and temporary files, and on the worker rayscan is not installed: empty folders
lie over its packages. `run_on_two_machines` starts this file as a program in namespaces, which only root can make and
which end with all that runs in them. It starts both nodes, runs commands on the head, looks twice a second where their
actors are, and may take the worker's power away.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.source import package_folders
from tests.nights import wait_for
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
ADDRESS = f"{HEAD}:6379"
STORE = S3Server(f"http://{HEAD}:9000")
SECONDS = 900
_APART = ("unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child")
_BIN = Path(sys.executable).parent
_RAY = ("--num-cpus=1", f"--object-store-memory={150 << 20}", "--block", "--disable-usage-stats")
_WIRE = f"""
ip link set lo up
mount -t tmpfs none /run
ip netns add worker
ip link add head type veth peer name wire netns worker
ip addr add {HEAD}/24 dev head
ip link set head up
ip netns exec worker ip link set lo up
ip netns exec worker ip addr add {WORKER}/24 dev wire
ip netns exec worker ip link set wire up
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command for the head, and when the worker loses its power meanwhile."""

    command: Sequence[str]
    kill_after: int | None = None
    """Parts of scores in the store after which it happens; None: it does not."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a step."""

    code: int
    stdout: str
    stderr: str
    machines: list[str]
    """Addresses of the nodes that had actors of it."""
    killed: bool


def run_on_two_machines(steps: Sequence[Step], store: Path, environment: Mapping[str, str]) -> list[Done]:
    """Run the steps one after another, until one fails; `store` is the folder of buckets behind the S3 server."""
    with tempfile.TemporaryDirectory(prefix="tm-", dir="/tmp", ignore_cleanup_errors=True) as short:  # sockets
        order = Path(short) / "order.json"
        order.write_text(json.dumps({"steps": [asdict(step) for step in steps], "store": str(store)}))
        inside = dict(environment) | STORE.environment() | {"HOME": short, "RAY_TMPDIR": short}
        inside |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
        # A head gives up a lost node after 10 s instead of 30.
        inside |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10"}
        inside |= {"PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(
            [*_APART, sys.executable, "-m", "tests.chaos.two_machines", str(order)],
            env=inside | {"PYTHONPATH": os.pathsep.join(["", *sys.path]).strip(os.pathsep)},
            check=True,
            timeout=SECONDS,
        )
        return [Done(**done) for done in json.loads(order.with_name("done.json").read_text())]


def _start_head(folder: Path) -> None:
    command = ("ray", "start", "--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false")
    with (folder / "head.log").open("wb") as log:
        subprocess.Popen([*command, *_RAY], stdout=log, stderr=log)
    wait_for(lambda: "Ray runtime started" in (folder / "head.log").read_text())


def _start_worker(folder: Path) -> "subprocess.Popen[bytes]":
    """On the worker, our packages and all files of the head are hidden by empty folders."""
    hidden = [str(path) for path in package_folders().values()] + [str(folder)]
    script = "\n".join(
        [
            "set -e",
            *(f"mount -t tmpfs none '{path}'" for path in hidden),
            "cd /",
            "! python -c 'import pipelines.errors' 2>/dev/null",
            f"exec ray start --address={ADDRESS} --node-ip-address={WORKER} {' '.join(_RAY)}",
        ]
    )
    apart = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
    with (folder / "worker.log").open("wb") as log:
        return subprocess.Popen(["ip", "netns", "exec", "worker", *apart, "sh", "-c", script], stdout=log, stderr=log)


def _cut_power(worker: "subprocess.Popen[bytes]") -> None:
    """The wire goes first: a machine without power sends no farewell."""
    subprocess.run(["ip", "link", "set", "head", "down"], check=True)
    worker.kill()
    worker.wait()


def _machines() -> set[str]:
    """Addresses of the nodes on which an actor that computes has a place."""
    import ray

    from pipelines.claims import claims

    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return {addresses[claim.node] for claim in claims() or [] if claim.node in addresses}


def _run(step: Mapping[str, Any], store: Path, worker: "subprocess.Popen[bytes]") -> Done:
    pause, machines, killed = threading.Event(), set(), False
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        run = subprocess.Popen(step["command"], stdout=stdout, stderr=stderr, text=True)
        while run.poll() is None:
            machines |= _machines()
            if step["kill_after"] is not None and not killed:
                parts = sum(1 for _ in store.glob("*/scores/scores/**/*.parquet"))
                if killed := parts >= step["kill_after"]:
                    _cut_power(worker)
            pause.wait(0.5)
        stdout.seek(0)
        stderr.seek(0)
        return Done(
            code=run.returncode, stdout=stdout.read(), stderr=stderr.read(), machines=sorted(machines), killed=killed
        )


def main(path: str) -> None:
    """The program inside."""
    import ray

    order, folder = json.loads(Path(path).read_text()), Path(path).parent
    subprocess.run(["sh", "-ec", _WIRE], check=True)
    serve = (str(_BIN / "rclone"), "serve", "s3", "--addr", STORE.endpoint.removeprefix("http://"))
    quiet = subprocess.DEVNULL
    subprocess.Popen([*serve, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", order["store"]], stdout=quiet, stderr=quiet)
    _start_head(folder)
    worker = _start_worker(folder)
    ray.init(ADDRESS, logging_level=logging.ERROR, log_to_driver=False)

    def dead() -> bool:
        assert worker.poll() is None, (folder / "worker.log").read_text()
        return False

    wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, unless=dead)
    done: list[Done] = []
    for step in order["steps"]:
        done.append(_run(step, Path(order["store"]), worker))
        if done[-1].code:
            break
    (folder / "done.json").write_text(json.dumps([asdict(one) for one in done]))


if __name__ == "__main__":
    main(sys.argv[1])
