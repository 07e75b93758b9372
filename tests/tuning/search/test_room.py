"""What a trial gets and how many run at a time, on clusters of any size, and what is said while there is no node."""

import logging

import pytest
import ray

from models.errors import InputError
from pipelines.capacity import Capacity, NodeType
from tuning.search.room import EVERY, PATIENCE, Waiting, room_for
from tuning.search.settings import SearchSettings

HEAD = NodeType(cpus=0)
SMALL, LARGE = NodeType(cpus=4, count=3), NodeType(cpus=16, gpus=2, count=2)


def grown(*kinds: NodeType, most_nodes: int | None = None) -> Capacity:
    """A cluster of a head without CPUs, that may grow."""
    return Capacity(nodes=(HEAD,), node_types=kinds, most_nodes=most_nodes, head=HEAD)


FIXED = Capacity(nodes=(NodeType(cpus=8),))


@pytest.mark.parametrize(
    ("capacity", "settings", "each", "trials"),
    [
        (FIXED, {}, {"CPU": 1.0}, 8),
        (FIXED, {"cpus_per_trial": 3}, {"CPU": 3.0}, 2),
        (FIXED, {"max_concurrent": 3}, {"CPU": 1.0}, 3),
        (grown(SMALL), {}, {"CPU": 1.0}, 12),
        (grown(SMALL), {"workers_per_trial": 5}, {"CPU": 1.0}, 2),
        (grown(SMALL, most_nodes=2), {}, {"CPU": 1.0}, 8),
        (grown(SMALL, LARGE), {}, {"CPU": 1.0, "GPU": 0.25}, 16),
        (grown(SMALL, LARGE), {"gpus_per_trial": 1.0}, {"CPU": 1.0, "GPU": 1.0}, 4),
        (grown(SMALL, LARGE), {"workers_per_trial": 2}, {"CPU": 1.0, "GPU": 1.0}, 2),
        (grown(SMALL, LARGE), {"gpus_per_trial": 0.25}, {"CPU": 1.0, "GPU": 0.25}, 16),
        (grown(SMALL, LARGE), {"gpus_per_trial": 0.0}, {"CPU": 1.0}, 12),
        (grown(LARGE), {"cpus_per_trial": 16}, {"CPU": 16.0, "GPU": 0.25}, 2),
    ],
)
def test_a_search_counts_on_what_the_cluster_can_become(
    capacity: Capacity, settings: dict[str, int], each: dict[str, float], trials: int
) -> None:
    room = room_for(SearchSettings(**settings), capacity)  # type: ignore[arg-type]
    assert (dict(room.each), room.trials) == (each, trials)


@pytest.mark.parametrize(
    ("capacity", "settings", "said"),
    [
        (FIXED, {"cpus_per_trial": 9}, "one trial needs {'CPU': 9.0}, but the cluster has 8 CPUs and 0 GPUs"),
        (grown(SMALL), {"cpus_per_trial": 5}, "when it has grown, has 12 CPUs and 0 GPUs, 4 CPUs on its largest node"),
        (grown(SMALL), {"gpus_per_trial": 1.0}, "12 CPUs and 0 GPUs"),
        (Capacity(nodes=(HEAD,)), {}, "has 0 CPUs and 0 GPUs, 0 CPUs on its largest node; .*give --concurrent to wait"),
    ],
)
def test_what_no_node_can_hold_is_refused(capacity: Capacity, settings: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        room_for(SearchSettings(**settings), capacity)  # type: ignore[arg-type]
    told = room_for(SearchSettings(**settings, max_concurrent=2), capacity)  # type: ignore[arg-type]
    assert told.trials == 2


def test_concurrent_holds_for_probes_as_well() -> None:
    assert room_for(SearchSettings(), FIXED).cores == 8
    assert room_for(SearchSettings(max_concurrent=2, cpus_per_trial=3), FIXED).cores == 6


@pytest.mark.usefixtures("ray_session")
def test_a_search_that_waits_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    waiting = Waiting()
    with caplog.at_level(logging.INFO, logger="rayscan"):
        waiting.look(2, 1, 0.0)
        waiting.look(2, 0, 10.0)
        waiting.look(2, 0, 9.0 + PATIENCE)
        assert not caplog.records
        for second in range(int(PATIENCE + 2 * EVERY)):
            waiting.look(2, 0, 10.0 + PATIENCE + second)
    first, second, third = [line.getMessage() for line in caplog.records]
    cpus = f"{ray.cluster_resources()['CPU']:g} CPUs"  # type: ignore[no-untyped-call]
    assert first.startswith("the search waits for nodes, for 20 s now: ")
    assert cpus in first
    assert "0 of 0 GPUs are free" in first
    assert "for 80 s now" in second
    assert "for 140 s now" in third
