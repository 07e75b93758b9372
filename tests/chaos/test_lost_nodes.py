"""A node lost without notice at each moment of a trial, and another in its place: no trial twice, none lost."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.moments import MOMENTS, Moment
from tests.chaos.searches import SECONDS, Search
from tests.tuning.films import write_dataset

pytestmark = pytest.mark.chaos


@pytest.fixture(params=MOMENTS)
def moment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moment:
    """The workers of every node that starts from now on pass it."""
    folder = tmp_path / "moment"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return Moment(request.param, folder)


@pytest.fixture
def cluster(moment: Moment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and two nodes of one."""
    from ray.cluster_utils import Cluster

    # Before the cluster starts, so that its head sees a lost node within seconds instead of half a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def kill_node_of(process: int) -> None:
    """SIGKILL to all processes of the node on which this one runs, as when its machine is taken away."""
    raylet = next(parent for parent in psutil.Process(process).parents() if "raylet" in parent.name())
    for one in [*raylet.children(recursive=True), raylet]:
        one.send_signal(signal.SIGKILL)


def test_a_search_loses_a_node(cluster: Any, moment: Moment, rayscan_command: str, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset)
    path = os.environ["PYTHONPATH"].partition(os.pathsep)[2]
    search = Search(
        rayscan=rayscan_command,
        dataset=dataset,
        study=tmp_path / "study",
        trials=6,
        epochs=3,
        family="mlp",
        options=("--address", cluster.address),
    )
    # This cluster has no token, and a driver that finds one on its machine would use it.
    search.environment.update({"RAY_AUTH_MODE": "disabled", "PYTHONPATH": path})
    with search.running() as driver:
        search.wait_for(lambda: moment.comes_once or len(search.ended()) >= 1, driver)
        moment.arm()
        search.wait_for(lambda: moment.process is not None, driver)
        assert moment.process
        kill_node_of(moment.process)
        cluster.add_node(num_cpus=1)
        assert driver.wait(timeout=SECONDS) == 0, search.log.read_text()
    search.assert_whole()
    told = [line for line in search.log.read_text().splitlines() if "it starts again" in line or "goes on from" in line]
    assert told, search.log.read_text()
    print(told)
