"""`rayscan doctor`: is every node of the cluster fit to work, and if not, what mends it?

One small actor is pinned to each node. It claims no CPU, so busy nodes, and nodes that take no work, are examined too.
It reports facts, which are compared here with those of the driver.
"""

import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster import source
from pipelines.errors import RayscanError
from pipelines.storage import open_store

ANSWER_SECONDS = 120
"""A node that has not reported by then fails. A worker's first start there unpacks our code and imports torch."""
CLOCK_WARN_SECONDS = 2.0
CLOCK_FAIL_SECONDS = 60.0
"""Leases expire by the nodes' clocks, and object stores refuse requests signed minutes off."""
DISK_WARN_BYTES = 10 * 2**30
DISK_FAIL_SHARE = 0.05
"""Ray stops spilling objects on a disk with less than this free."""
LIBRARIES = ("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "pillow", "pydicom", "obstore", "safetensors")

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check on one node."""

    node: str
    """Its address."""
    check: str
    state: State
    found: str
    mend: str = ""
    """What to do about it; empty when there is nothing to do."""

    @property
    def ok(self) -> bool:
        """Whether the node passes this check; a warning passes."""
        return self.state != "fail"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What one process sees of its machine."""

    python: str
    libraries: Mapping[str, str]
    source: str
    """Hash of our four packages as this process imports them."""
    free_bytes: int
    total_bytes: int
    gpus: int


class NodeProbe:
    """Runs on the node under examination."""

    def facts(self) -> NodeFacts:
        """Versions, code, disk and GPUs here."""
        import torch

        disk = shutil.disk_usage(tempfile.gettempdir())
        return NodeFacts(
            python=platform.python_version(),
            libraries={name: _version(name) for name in LIBRARIES},
            source=source.source_hash(source.package_folders()),
            free_bytes=disk.free,
            total_bytes=disk.total,
            gpus=torch.cuda.device_count(),
        )

    def clock(self) -> float:
        """Seconds since the epoch by this node's clock."""
        return time.time()

    def reach(self, uri: str) -> tuple[str, float]:
        """List the beginning of a store: what is wrong, or an empty text; and the seconds it took."""
        started = time.perf_counter()
        try:
            next(open_store(uri).list(""), None)
        except RayscanError as error:
            return str(error), time.perf_counter() - started
        return "", time.perf_counter() - started


def examine(uri: str | None = None) -> list[Finding]:
    """Check every living node of the connected cluster; with a URI, also whether each can list that store.

    Ray must be connected. The findings come node by node, the order of the checks is the same on each.
    """
    import ray

    driver = NodeProbe().facts()
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    probes = [_probe_on(node["NodeID"]) for node in nodes]
    reports = [probe.facts.remote() for probe in probes]  # all nodes start their workers at the same time
    findings = []
    for node, probe, report in zip(nodes, probes, reports, strict=True):
        address = node["NodeManagerAddress"]
        try:
            facts = ray.get(report, timeout=ANSWER_SECONDS)
            skew = _clock_skew(probe)
            storage = ray.get(probe.reach.remote(uri), timeout=ANSWER_SECONDS) if uri else None
        except ray.exceptions.RayError as error:
            findings.append(_silent(address, error))
            continue
        findings += judge(address, facts, driver, skew=skew, ray_gpus=int(node["Resources"].get("GPU", 0)))
        if uri and storage:
            findings.append(_judge_storage(address, uri, *storage))
    return findings


def judge(node: str, facts: NodeFacts, driver: NodeFacts, *, skew: float, ray_gpus: int) -> list[Finding]:
    """Compare the facts of one node with those of the driver.

    `skew` is how many seconds its clock is ahead of the driver's, `ray_gpus` how many GPUs Ray thinks it has.
    """
    return [
        _judge_python(node, facts, driver),
        _judge_libraries(node, facts, driver),
        _judge_source(node, facts, driver),
        _judge_clock(node, skew),
        _judge_disk(node, facts),
        _judge_gpus(node, facts, ray_gpus),
    ]


def _judge_python(node: str, facts: NodeFacts, driver: NodeFacts) -> Finding:
    if facts.python == driver.python:
        return Finding(node=node, check="python", state="ok", found=facts.python)
    return Finding(
        node=node,
        check="python",
        state="fail",
        found=f"{facts.python}, the driver has {driver.python}",
        mend="use one Python on all nodes: Ray moves code between them as that version's byte code",
    )


def _judge_libraries(node: str, facts: NodeFacts, driver: NodeFacts) -> Finding:
    others = {name: version for name, version in facts.libraries.items() if version != driver.libraries[name]}
    if not others:
        return Finding(node=node, check="libraries", state="ok", found=f"{len(facts.libraries)} as the driver's")
    return Finding(
        node=node,
        check="libraries",
        state="fail",
        found=", ".join(f"{name} {has}, the driver has {driver.libraries[name]}" for name, has in others.items()),
        mend="`pip install -c constraints.txt` rayscan there: another decoder gives other pixels, so other scores",
    )


def _judge_source(node: str, facts: NodeFacts, driver: NodeFacts) -> Finding:
    if facts.source == driver.source:
        return Finding(node=node, check="code", state="ok", found=facts.source)
    return Finding(
        node=node,
        check="code",
        state="fail",
        found=f"{facts.source}, the driver has {driver.source}",
        mend="another rayscan, or a stranger's package, comes first on that node's PYTHONPATH: remove it",
    )


def _judge_clock(node: str, skew: float) -> Finding:
    off = abs(skew)
    state: State = "ok" if off < CLOCK_WARN_SECONDS else "warn" if off < CLOCK_FAIL_SECONDS else "fail"
    return Finding(
        node=node,
        check="clock",
        state=state,
        found=f"{skew:+.2f} s from the driver's",
        mend="" if state == "ok" else "start the time service (chrony) on that node",
    )


def _judge_disk(node: str, facts: NodeFacts) -> Finding:
    full = facts.free_bytes < DISK_FAIL_SHARE * facts.total_bytes
    state: State = "fail" if full else "warn" if facts.free_bytes < DISK_WARN_BYTES else "ok"
    return Finding(
        node=node,
        check="disk",
        state=state,
        found=f"{facts.free_bytes / 2**30:.1f} GiB free of {facts.total_bytes / 2**30:.1f} in the temporary folder",
        mend=""
        if state == "ok"
        else "delete old session_* folders in /tmp/ray and /tmp/rayscan-*/ray, or give Ray --temp-dir on more disk",
    )


def _judge_gpus(node: str, facts: NodeFacts, ray_gpus: int) -> Finding:
    if facts.gpus == ray_gpus:
        return Finding(node=node, check="gpus", state="ok", found=str(facts.gpus))
    if facts.gpus < ray_gpus:
        return Finding(
            node=node,
            check="gpus",
            state="fail",
            found=f"torch sees {facts.gpus}, Ray offers {ray_gpus}",
            mend="work sent to that node will fail: check `nvidia-smi` there and the CUDA build of torch",
        )
    return Finding(
        node=node,
        check="gpus",
        state="warn",
        found=f"torch sees {facts.gpus}, Ray offers {ray_gpus}",
        mend="GPUs lie idle: start Ray on that node with --num-gpus",
    )


def _judge_storage(node: str, uri: str, wrong: str, seconds: float) -> Finding:
    if wrong:
        return Finding(
            node=node,
            check="storage",
            state="fail",
            found=wrong,
            mend="give that node's role or environment access to the store, and a network route to it",
        )
    return Finding(node=node, check="storage", state="ok", found=f"{uri} listed in {seconds:.2f} s")


def _silent(node: str, error: Exception) -> Finding:
    return Finding(
        node=node,
        check="answer",
        state="fail",
        found=f"{type(error).__name__} after at most {ANSWER_SECONDS} s",
        mend="look at that node's log on the dashboard, or take it out with `ray drain-node`",
    )


def _probe_on(node_id: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(NodeProbe).options(num_cpus=0, scheduling_strategy=pinned).remote()


def _clock_skew(probe: Any) -> float:
    """Seconds by which the node's clock is ahead: measured at the middle of a round trip to a running worker."""
    import ray

    asked = time.time()
    there: float = ray.get(probe.clock.remote(), timeout=ANSWER_SECONDS)
    return there - (asked + time.time()) / 2


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
