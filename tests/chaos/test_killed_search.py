"""Drivers and nodes of a search killed half-way; then the search runs to its end, and the table is counted."""

import random
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipelines.bundles import fetch_bundle
from tests.chaos.searches import SECONDS, Search
from tests.tuning.films import write_dataset

TRIALS, EPOCHS = 10, 9
HOW_IT_GOES_ON = ("it goes on from its last epoch", "it is tried again")

pytestmark = pytest.mark.chaos


@pytest.fixture
def search(rayscan_command: str, tmp_path: Path) -> Search:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, films=2800)
    return Search(
        rayscan=rayscan_command, dataset=dataset, study=tmp_path / "study", trials=TRIALS, epochs=EPOCHS, family="cnn"
    )


def test_drivers(search: Search, tmp_path: Path) -> None:
    moments, kills, interrupted = random.Random(0), 3, {}
    for kill in range(1, kills + 1):
        table = tmp_path / f"before-{kill}.parquet"
        with search.running() as driver:
            least = len(search.ended()) + moments.randint(1, TRIALS // kills - 1)
            done = moments.randint(1, EPOCHS // 2)
            search.wait_for(partial(search.is_at, least, done), driver)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            shutil.copy(search.study / "trials.parquet", table)
        interrupted |= search.under_way()
    search.run()
    search.assert_whole()
    for kill in range(1, kills + 1):
        assert search.ask(f"FROM '{tmp_path}/before-{kill}.parquet' EXCEPT FROM trials") == []
    assert interrupted
    epochs = {row["trial_id"]: row["epochs"] for row in search.ask("SELECT trial_id, epochs FROM trials")}
    for trial_id, done in interrupted.items():
        assert epochs[trial_id] >= done
        search.assert_as_unbroken(trial_id)
    print(f"{kills} kills of the driver: {TRIALS} trials, none twice; {len(interrupted)} taken up, as if unbroken")


def test_ctrl_c(search: Search) -> None:
    """The search ends by itself, with the best so far promoted; what was under way counts with what it reached."""
    with search.running() as driver:
        search.wait_for(partial(search.is_at, 2, 2), driver)
        under_way = search.under_way()
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=SECONDS) == 0, search.log.read_text()
    rows = {row["trial_id"]: row for row in search.ask("SELECT trial_id, epochs, status, auc FROM trials")}
    assert 2 < len(rows) < TRIALS
    for trial_id, epochs in under_way.items():
        assert rows[trial_id]["epochs"] >= epochs
    bundle = fetch_bundle(str(search.study / "best"))
    assert rows[bundle.lineage["trial_id"]]["auc"] == max(row["auc"] for row in rows.values())
    assert not list(search.study.glob("trials/*/checkpoint.safetensors"))
    search.run()
    search.assert_whole()


def test_nodes(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    # Before the cluster starts, so that its head sees a lost node within seconds instead of half a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        # This cluster has no token, and a driver that finds one on its machine would use it.
        environment = {**search.environment, "RAY_AUTH_MODE": "disabled"}
        search = replace(search, environment=environment, options=("--address", cluster.address))
        with search.running() as driver:
            search.wait_for(lambda: len(search.ended()) >= 2 and len(search.under_way()) == 2, driver)
            reached = search.under_way()
            raylet = nodes[0].all_processes["raylet"][0].process.pid
            for process in [*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)]:
                process.send_signal(signal.SIGKILL)
            assert driver.wait(timeout=SECONDS) == 0, search.log.read_text()
    finally:
        cluster.shutdown()
    search.assert_whole()
    # Meanwhile another trial may have begun there, of which no epoch is stored.
    (lost,) = [line for line in search.log.read_text().splitlines() if line.endswith(HOW_IT_GOES_ON)]
    for trial_id in reached:
        search.assert_as_unbroken(trial_id)
    print(f"1 of 2 nodes killed: {TRIALS} trials, none twice; {lost}")
