"""What a run used, from the times its actors were at work."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.usage import Stint, Usage, usage

CORE, GPU = (1, 0), (0, 1)


def _stint(stage: int, node: str, began: float, ended: float) -> Stint:
    return Stint(stage=stage, node=node, began=began, ended=ended)


def test_nothing_was_used_where_nothing_was_done() -> None:
    assert usage([], [CORE]) == Usage()


def test_each_figure_is_the_most_at_a_time() -> None:
    stints = [_stint(0, "a", 0, 2), _stint(0, "b", 1, 3), _stint(1, "b", 2.5, 4), _stint(0, "a", 3, 4)]
    assert usage(stints, [CORE, GPU]) == Usage(actors=2, cpus=2, gpus=1, nodes=2)


def test_one_actor_that_does_shard_after_shard_is_one() -> None:
    assert usage([_stint(0, "a", n, n + 1) for n in range(9)], [CORE]) == Usage(actors=1, cpus=1, nodes=1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 9), st.floats(0, 9)), max_size=20))
def test_no_more_at_a_time_than_in_all(times: list[tuple[str, float, float]]) -> None:
    used = usage([_stint(0, node, began, began + long) for node, began, long in times], [CORE])
    assert used.actors == used.cpus <= len(times)
    assert used.nodes == len({node for node, _, _ in times})
