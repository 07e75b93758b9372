"""Scans are counted while their shards are under way, and once each."""

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import tally as module
from pipelines.tally import SILENT, Count, Reporter, Tally, counting


class Sum:
    """What a bar would show."""

    def __init__(self, until: int = 0) -> None:
        self.done = 0
        self.until = until
        self.reached = threading.Event()

    def __call__(self, done: int) -> None:
        assert done > 0, "a bar does not go back"
        self.done += done
        if self.done >= self.until:
            self.reached.set()


def test_a_bar_moves_before_a_shard_ends_and_counts_nothing_twice() -> None:
    shown = Sum()
    count = Count(shown, SILENT)
    count.add({0: 10, 1: 3})
    assert shown.done == 13
    count.end(0, 256)
    count.add({0: 250, 1: 200})  # what was reported of shard 0 before it ended, and came late
    assert shown.done == 456
    count.add({1: 5})  # its worker died, and it is begun anew
    assert shown.done == 456
    count.end(1, 256)
    assert shown.done == 512


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), max_size=40), st.permutations(range(4)))
def test_all_shards_ended_is_all_scans_whatever_was_reported(
    reports: Sequence[tuple[int, int]], order: Sequence[int]
) -> None:
    shown = Sum()
    count = Count(shown, SILENT)
    for number, (shard, read) in enumerate(reports):
        count.add({shard: read})
        assert shown.done <= 32
        if number % 10 == 9:
            count.end(order[number // 10], 8)
    for shard in set(order) - set(order[: len(reports) // 10]):
        count.end(shard, 8)
    assert shown.done == 32


def test_reports_keep_the_scans_and_their_order() -> None:
    assert list(SILENT.counted(3, "abc")) == ["a", "b", "c"]
    tally = Tally()
    tally.report(3, 7)
    tally.report(3, 9)
    assert tally.take() == {3: 9}
    assert tally.take() == {}


@pytest.mark.usefixtures("ray_session")
def test_workers_are_heard_while_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(module, "REPORT_SECONDS", 0.01)

    def work(reporter: Reporter, shard: int) -> None:
        go_on = iter(reporter.counted(shard, range(50)))
        for _ in range(20):
            next(go_on)

    shown = Sum(until=2)
    with counting(shown) as count:
        ray.get([ray.remote(num_cpus=0.1)(work).remote(count.reporter, shard) for shard in range(2)])
        assert shown.reached.wait(30), "nothing was counted before the shards ended"
        count.end(0, 50)
        count.end(1, 50)
    assert shown.done == 100


@pytest.mark.usefixtures("ray_session")
def test_a_tally_that_is_lost_does_not_stop_the_work() -> None:
    import ray

    shown = Sum()
    with counting(shown) as count:
        ray.kill(count.reporter.tally)
        assert list(count.reporter.counted(0, range(3))) == [0, 1, 2]
        count.end(0, 3)
    assert shown.done == 3
