"""Drivers, workers and nodes killed again and again at random moments of one night; then the night runs to its end."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.nights import make_night, wait_for, workers

FILMS = 400
SHARDS = FILMS // 4
WHOLE = {"rows": FILMS, "scans": FILMS, "runs": 1}
SEEDS = range(3)

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("seed", SEEDS)
def test_drivers(rayscan_command: str, tmp_path: Path, seed: int) -> None:
    night, moments, kills = make_night(rayscan_command, tmp_path, films=FILMS), random.Random(seed), 4
    for _ in range(kills):
        night.kill_driver(after=night.parts() + moments.randint(1, SHARDS // (kills + 1)))
    left = SHARDS - night.parts()
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    print(f"drivers, seed {seed}: {kills} kills, 0 rows lost, 0 doubled, {left} of {SHARDS} shards left for the last")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_workers(rayscan_command: str, tmp_path: Path, seed: int, how: signal.Signals) -> None:
    night, moments, kills = make_night(rayscan_command, tmp_path, films=FILMS), random.Random(seed), 4
    with night.running() as driver:
        reached = 0
        for _ in range(kills):
            reached = max(reached, night.parts()) + moments.randint(1, SHARDS // (kills + 2))
            night.wait_for_parts(driver, reached)
            wait_for(lambda: bool(workers(driver)), unless=lambda: driver.poll() is not None)
            moments.choice(workers(driver)).send_signal(how)
        _, stderr = driver.communicate(timeout=300)
        assert driver.returncode == 0, stderr
    assert night.rows() == WHOLE
    assert night.statuses() == {("scored", None): FILMS}
    print(f"workers, {how.name}, seed {seed}: {kills} kills, 0 rows lost, 0 doubled")


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes(rayscan_command: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    # Before the cluster starts, so that its head sees a lost node within seconds instead of half a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    night, moments = make_night(rayscan_command, tmp_path, films=FILMS), random.Random(seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        # This cluster has no token, and a driver that finds one on its machine would use it.
        environment = {**night.environment, "RAY_AUTH_MODE": "disabled"}
        night = replace(night, environment=environment, options=(*night.options, "--address", cluster.address))
        with night.running() as driver:
            night.wait_for_parts(driver, moments.randint(2, SHARDS // 2))
            raylet = nodes[moments.randrange(2)].all_processes["raylet"][0].process.pid
            for process in [*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)]:
                process.send_signal(signal.SIGKILL)
            _, stderr = driver.communicate(timeout=300)
            assert driver.returncode == 0, stderr
    finally:
        cluster.shutdown()
    assert night.rows() == WHOLE
    assert night.statuses() == {("scored", None): FILMS}
    print(f"nodes, seed {seed}: 1 of 2 killed, 0 rows lost, 0 doubled")


def test_everything_at_once(rayscan_command: str, tmp_path: Path) -> None:
    """The driver and all its workers are killed together, repeatedly, as when a machine loses its power."""
    night, moments, kills = make_night(rayscan_command, tmp_path, films=FILMS), random.Random(9), 3
    for _ in range(kills):
        with night.running() as driver:
            night.wait_for_parts(driver, night.parts() + moments.randint(1, SHARDS // (kills + 1)))
            family = [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]
            for process in family:
                if process.is_running():
                    os.kill(process.pid, signal.SIGKILL)
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    print(f"all at once: {kills} times, 0 rows lost, 0 doubled")
