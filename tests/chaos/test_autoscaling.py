"""A night on a cluster that starts with no worker nodes: what it becomes, what it gives back, a node lost midway."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.gpu_night import SHARDS
from tests.chaos.growing_cluster import ADDRESS, Seen, can_make_namespaces, watched_run
from tests.nights import Night, make_night

FILMS = 2400
"""Enough that the work is not over before the second node is there."""
WHOLE = {"rows": FILMS, "scans": FILMS, "runs": 1}

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not can_make_namespaces(), reason="only root may make the namespaces it has to run in"),
]


@pytest.fixture
def night(rayscan_command: str, tmp_path: Path) -> Night:
    whole = make_night(rayscan_command, tmp_path, films=FILMS)
    return replace(whole, options=(*whole.options, "--address", ADDRESS))


def _record(night: Night) -> dict[str, Any]:
    (path,) = (night.scores.path / "runs").glob("*/run.json")
    return dict(json.loads(path.read_text()))


def _told(seen: Seen) -> None:
    for look in seen.looks[:: max(1, len(seen.looks) // 12)]:
        print(f"{look.seconds:6.1f} s: {look.nodes} nodes, {look.actors} actors, {look.waiting} wait")
    print(f"worker nodes gone {seen.released} s after the end")


def test_a_night_takes_the_nodes_it_can_get_and_gives_them_back(night: Night, tmp_path: Path) -> None:
    seen = watched_run(night.command, night.environment, tmp_path)
    _told(seen)
    assert seen.code == 0, seen.output
    assert night.rows() == WHOLE
    assert "no GPU, 0 of 4 CPUs: 4 actors of one core" in seen.output
    assert max(look.actors for look in seen.looks) == 4
    assert max(look.nodes for look in seen.looks) == 2
    assert not any(look.gpus for look in seen.looks), "no GPU node is started for a model that gains nothing there"
    record = _record(night)
    assert (record["gpus"], record["nodes"]) == (0, 2)
    assert 2 < record["actors"] == record["cpus"] <= 4
    assert seen.asked in {"", "[]"}, "nothing is asked of the autoscaler any more"
    assert seen.released is not None


def test_a_node_killed_midway_costs_no_row(night: Night, tmp_path: Path) -> None:
    parts = str(night.scores.path / "scores")
    seen = watched_run(night.command, night.environment, tmp_path, kill_after=6, parts=parts)
    _told(seen)
    assert seen.killed, seen.output
    assert seen.code == 0, seen.output
    assert night.rows() == WHOLE
    assert night.statuses() == {("scored", None): FILMS}
    assert seen.released is not None


def test_a_gpu_node_is_started_for_a_model_that_pays_there_and_given_back(night: Night, tmp_path: Path) -> None:
    seen = watched_run([sys.executable, "-m", "tests.chaos.gpu_night", ADDRESS], night.environment, tmp_path)
    _told(seen)
    assert seen.code == 0, seen.output
    told = json.loads(seen.output.splitlines()[-1])
    print(told["layout"])
    assert told["done"] == list(range(SHARDS))
    assert told["used"]["gpus"] == 1
    assert max(look.gpus for look in seen.looks) == 1
    assert max(look.nodes for look in seen.looks) == 3, "decoders get the nodes without a GPU"
    assert seen.asked in {"", "[]"}
    assert seen.released is not None
