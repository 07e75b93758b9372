"""A cluster as `ray_cluster.yaml` makes it, a head that takes no tasks and a node on spot: what runs on which.

Both nodes run on this machine, each with the labels of that file.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.ray_head import Head, running_head, running_node

KINDS = yaml.safe_load((Path(__file__).parents[2] / "ray_cluster.yaml").read_text())["available_node_types"]
JOB = """
import dataclasses, json, ray
from cluster.doctor import examine
from cluster.session import ray_session
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tuning.search.group_trial import DRIVER

with ray_session() as session:
    inside = PlacementGroupSchedulingStrategy(DRIVER.to_placement_group())
    labels = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_node_labels())
    print(json.dumps({
        "job": ray.get_runtime_context().get_node_labels(),
        "group trial": ray.get(labels.options(scheduling_strategy=inside).remote(), timeout=60),
        "findings": [dataclasses.asdict(finding) for finding in examine(None, session.dashboard_url)],
    }))
"""
SUBMIT = "import sys; from cluster.jobs import submit; sys.exit(submit(['score'], sys.argv[1], command=sys.argv[2:]))"


def labels_of(kind: str) -> str:
    return "--labels=" + ",".join(f"{name}={value}" for name, value in KINDS[kind]["labels"].items())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with running_head("--num-cpus=0", labels_of("head")) as head, running_node(head, "--num-cpus=2", labels_of("gpu")):
        yield head


@pytest.fixture(scope="module")
def seen(cluster: Head) -> Any:
    """What one submitted job saw: where it ran, where the driver of a group trial runs, and doctor's findings."""
    done = python(cluster, "-c", SUBMIT, cluster.dashboard, sys.executable, "-c", JOB)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == 1, done.stdout + done.stderr
    return json.loads(answers[0])


def python(cluster: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=cluster.environment(), capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.chaos
def test_drivers_run_on_the_head_though_only_the_spot_node_has_cpus(seen: Any) -> None:
    assert seen["job"]["market"] == "on-demand"
    assert seen["group trial"]["market"] == "on-demand"


@pytest.mark.chaos
def test_doctor_examines_both_nodes_and_the_ways_between_them(cluster: Head, seen: Any) -> None:
    faults = [finding for finding in seen["findings"] if finding["state"] == "fail"]
    assert {fault["check"] for fault in faults} <= {"disk", "memory"}, faults  # those of the machine
    found = {(finding["check"], finding["found"]) for finding in seen["findings"]}
    assert sum(finding["check"] == "python" for finding in seen["findings"]) == 2
    port = cluster.dashboard.rpartition(":")[2]
    assert found >= {
        ("ports", "all 2 ports of the other nodes answer"),
        ("market", "on-demand"),
        ("auth", "Ray asks for the token"),
        ("token", f"{cluster.token} has mode 0600"),
        ("dashboard", f"port {port} on 127.0.0.1, asks for the token"),
    }


@pytest.mark.chaos
def test_a_head_on_spot_a_token_for_everybody_and_an_open_dashboard_are_told() -> None:
    """The cluster nobody should have: each fault is found on a running one, and doctor exits 1."""
    with running_head("--labels=market=spot", "--dashboard-host=0.0.0.0") as head:
        head.token.chmod(0o644)
        verb = ("-c", "from cluster.cli import main; main()", "doctor", "--address", head.address)
        done = python(head, *verb)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    faults = {line.split()[2] for line in lines if line.startswith("fail")}
    assert {"market", "token"} <= faults <= {"market", "token", "disk", "memory"}
    assert any(line.split()[0] == "warn" and line.split()[2] == "dashboard" for line in lines)
    assert f"      mend: chmod 600 {head.token}" in lines
    assert "this run is driven from a spot node and ends with it" in done.stderr
