"""A Ray cluster that grows from no worker nodes, in pid and network namespaces of its own, and what was seen there.

`ray stop --force` ends every Ray on a machine, and Ray's autoscaler leaves nodes behind when it is killed: hence the
namespaces, which only root can make, and which end with all that runs in them. `watched_run` starts this file there as
a program; it starts the cluster, runs a command, looks at the cluster twice a second, may kill a node, and writes what
it saw as JSON.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ADDRESS = "127.0.0.1:6379"
SECONDS = 900
STARTS = 4
IDLE_SECONDS = 6
"""After so long without work the autoscaler stops a node."""
_APART = (
    *("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
)
_TYPES = {
    "cpu": {"resources": {"CPU": 2, "object_store_memory": 150 << 20}, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 150 << 20}, "max_workers": 1},
}
_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Look:
    """The cluster at a moment of the run."""

    seconds: float
    nodes: int
    """Worker nodes that are alive."""
    gpus: int
    actors: int
    """Scoring actors that have a place."""
    waiting: int
    """And those that have none."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of a run."""

    code: int
    output: str
    looks: list[Look]
    killed: bool
    released: float | None
    """Seconds from the end of the run until no worker node was left; None: some stayed."""
    asked: str
    """What still stands as the cluster's wish after the run, as Ray keeps it."""
    facts: dict[str, Any] = field(default_factory=dict)


def can_make_namespaces() -> bool:
    """Whether this process may."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("unshare", "ip"))


def watched_run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    kill_after: int | None = None,
    parts: str = "",
) -> Seen:
    """Run a command on a growing cluster; after so many files in the folder `parts`, kill a node that scores."""
    with tempfile.TemporaryDirectory(prefix="rg-", dir="/tmp", ignore_cleanup_errors=True) as short:  # sockets
        order = {
            "command": list(command),
            "kill_after": kill_after,
            "parts": parts,
            "report": str(folder / "seen.json"),
        }
        (folder / "order.json").write_text(json.dumps(order))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inside = dict(environment) | {"HOME": short, "RAY_TMPDIR": short, "PATH": path}
        inside |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        subprocess.run(
            [*_APART, sys.executable, "-m", "tests.chaos.growing_cluster", str(folder / "order.json")],
            env=inside | {"PYTHONPATH": os.pathsep.join(["", *sys.path]).strip(os.pathsep)},
            check=True,
            timeout=SECONDS,
        )
    seen = json.loads((folder / "seen.json").read_text())
    return Seen(**{**seen, "looks": [Look(**look) for look in seen["looks"]]})


def _configuration() -> dict[str, Any]:
    """Whole, because Ray's package lacks the file with the defaults."""
    kinds: dict[str, Any] = {name: {**kind, "node_config": {}, "min_workers": 0} for name, kind in _TYPES.items()}
    kinds["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "growing",
        "max_workers": 3,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in _LISTS},
    }


def _start_head(folder: Path) -> None:
    """As `ray.cluster_utils.AutoscalingCluster` does, but without the dashboard, which is most of the head's weight."""
    configuration = folder / "cluster.json"
    configuration.write_text(json.dumps(_configuration()))
    command = [
        *("ray", "start", "--head", "--port=6379", "--node-ip-address=127.0.0.1", "--num-cpus=0"),
        *(f"--object-store-memory={150 << 20}", "--include-dashboard=false", "--disable-usage-stats"),
        f"--autoscaling-config={configuration}",
    ]
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fast = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    patient = {"RAY_agent_register_timeout_ms": "180000", "RAY_worker_register_timeout_seconds": "180"}
    for attempt in range(STARTS):
        if subprocess.run(command, env=os.environ | fake | fast | patient, check=attempt == STARTS - 1).returncode == 0:
            return
        # Ray waits half a minute for its processes; a busy machine takes longer.
        subprocess.run(["ray", "stop", "--force"], check=True)


def _look(since: float) -> Look:
    import ray

    from pipelines.claims import claims

    workers = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    own = [claim for claim in claims() or [] if "ScoreShard" in claim.name or "InferShard" in claim.name]
    return Look(
        seconds=round(time.monotonic() - since, 1),
        nodes=len(workers),
        gpus=sum(int(resources.get("GPU", 0)) for resources in workers),
        actors=sum(claim.node is not None for claim in own),
        waiting=sum(claim.node is None for claim in own),
    )


def _kill_a_node() -> bool:
    """`kill -9` the raylet of a node whose actors score; Ray's workers are children of their node's raylet."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ScoreShard" in " ".join(process.cmdline()) and "raylet" in process.parent().name():
                process.parent().kill()
                return True
    return False


def _observe(order: Mapping[str, Any]) -> Seen:
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    ray.init(ADDRESS, logging_level="ERROR", log_to_driver=False)
    pause, since, looks, killed = threading.Event(), time.monotonic(), [], False
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(order["command"], stdout=output, stderr=output, text=True)
        while run.poll() is None:
            looks.append(_look(since))
            written = len(list(Path(order["parts"]).rglob("*.parquet"))) if order["kill_after"] is not None else 0
            if not killed and order["kill_after"] is not None and written >= order["kill_after"]:
                killed = looks[-1].nodes > 1 and _kill_a_node()
            pause.wait(0.5)
        output.seek(0)
        text = output.read()
    ended, released = time.monotonic(), None
    while released is None and time.monotonic() < ended + 20 * IDLE_SECONDS:
        pause.wait(0.5)
        if _look(since).nodes == 0:
            released = round(time.monotonic() - ended, 1)
    asked = (_internal_kv_get("autoscaler_resource_request") or b"").decode()
    return Seen(code=run.returncode, output=text, looks=looks, killed=killed, released=released, asked=asked)


def main(path: str) -> None:
    """The program inside."""
    order = json.loads(Path(path).read_text())
    _start_head(Path(path).parent)
    seen = _observe(order)
    Path(order["report"]).write_text(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main(sys.argv[1])
