"""What a cluster has and can become, from its nodes and from the file of its autoscaler."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.capacity import ANY_NUMBER, Capacity, NodeType, autoscaler_config, cluster_capacity

SIZES = st.builds(
    NodeType,
    cpus=st.integers(0, 64),
    gpus=st.integers(0, 8),
    memory=st.none() | st.integers(1, 64),
    count=st.integers(0, 9),
)


@given(nodes=st.lists(SIZES, max_size=4), kinds=st.lists(SIZES, max_size=4), most=st.none() | st.integers(0, 20))
def test_a_cluster_never_becomes_smaller_than_it_is(
    nodes: list[NodeType], kinds: list[NodeType], most: int | None
) -> None:
    capacity = Capacity(nodes=tuple(nodes), node_types=tuple(kinds), most_nodes=most)
    assert capacity.cpus <= capacity.most_cpus
    assert capacity.gpus <= capacity.most_gpus
    assert capacity.room(8) <= capacity.room()
    assert capacity.most_room(8) <= capacity.most_cpus
    assert capacity.most_cpus <= capacity.cpus + sum(kind.cpus * kind.count for kind in kinds)


def test_it_can_become_its_head_and_the_best_nodes_its_autoscaler_may_start() -> None:
    head = NodeType(cpus=4)
    kinds = (NodeType(cpus=8, count=10), NodeType(cpus=16, gpus=1, count=2))
    capacity = Capacity(nodes=(head, NodeType(cpus=8)), node_types=kinds, most_nodes=5, head=head)
    assert (capacity.cpus, capacity.gpus) == (12, 0)
    assert (capacity.most_cpus, capacity.most_gpus) == (4 + 5 * 8, 2)
    assert capacity.most_room(gpus=1) == 4 + 16 + 4 * 8
    assert capacity.most_room(gpus=9) == 4 + 2 * 16 + 3 * 8, "there are no more of them"


def test_nodes_with_gpus_are_not_started_for_want_of_cores_unless_there_are_no_others() -> None:
    gpu = NodeType(cpus=16, gpus=4, count=2)
    assert Capacity(nodes=(), node_types=(NodeType(cpus=8), gpu)).most_cpus == 8
    assert Capacity(nodes=(), node_types=(gpu,)).most_cpus == 32
    assert Capacity(nodes=(gpu,), node_types=(gpu,)).most_cpus == 32, "those that are there are used"


def test_actors_that_want_memory_take_the_room_of_several_cores() -> None:
    capacity = Capacity(nodes=(NodeType(cpus=8, memory=10, count=3), NodeType(cpus=2)))
    assert capacity.room(4) == 3 * 2 + 2
    assert capacity.largest_memory() is None, "one node does not say"
    assert Capacity(nodes=capacity.nodes[:1]).largest_memory() == 10


def _process(processes: Path, number: int, *arguments: str) -> None:
    (processes / str(number)).mkdir(parents=True)
    (processes / str(number) / "cmdline").write_bytes("\0".join(arguments).encode() + b"\0")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    kinds: dict[str, Any] = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 8, "memory": 1 << 30}, "node_config": {}, "max_workers": 4},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}},
    }
    path.write_text(json.dumps({"head_node_type": "head", "max_workers": 6, "available_node_types": kinds}))
    return path


def test_the_autoscaler_of_this_cluster_is_found_among_the_processes(tmp_path: Path, config: Path) -> None:
    processes = tmp_path / "proc"
    _process(processes, 7, "sleep", "9")
    _process(processes, 8, "monitor.py", "--gcs-address=10.0.0.2:6379", "--autoscaling-config=/another/cluster")
    _process(processes, 9, "monitor.py", "--gcs-address=10.0.0.1:6379", f"--autoscaling-config={config}")
    kinds = (NodeType(cpus=8, memory=1 << 30, count=4), NodeType(cpus=4, gpus=1, count=6))
    assert autoscaler_config("10.0.0.1:6379", processes) == (kinds, 6)
    assert autoscaler_config("10.0.0.3:6379", processes) is None


def test_a_ray_without_an_autoscaler_or_with_a_file_that_is_gone_says_nothing(tmp_path: Path) -> None:
    processes = tmp_path / "proc"
    _process(processes, 8, "monitor.py", "--gcs-address=10.0.0.1:6379", "--monitor-ip=10.0.0.1")
    _process(processes, 9, "monitor.py", "--gcs-address=10.0.0.2:6379", f"--autoscaling-config={tmp_path}/gone")
    assert autoscaler_config("10.0.0.1:6379", processes) is None
    assert autoscaler_config("10.0.0.2:6379", processes) is None


@pytest.mark.usefixtures("ray_session")
def test_a_ray_on_this_machine_is_what_it_is() -> None:
    capacity = cluster_capacity()
    assert (capacity.cpus, capacity.gpus, capacity.most_cpus, capacity.most_gpus) == (4, 0, 4, 0)
    assert capacity.node_types == ()
    assert capacity.largest_memory()


def test_a_type_without_a_limit_counts_as_many() -> None:
    capacity = Capacity(nodes=(), node_types=(NodeType(cpus=2, count=ANY_NUMBER),))
    assert capacity.most_cpus == 2 * ANY_NUMBER
