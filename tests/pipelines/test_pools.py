"""The actors of a run, from what a person allows and what the cluster can become."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InputError
from pipelines.pools import ActorLimits, Pool, check_memory, size_pool


@given(now=st.integers(0, 99), grows=st.integers(0, 99), shards=st.integers(1, 99))
def test_more_work_or_a_larger_cluster_never_means_fewer_actors(now: int, grows: int, shards: int) -> None:
    pool = size_pool(now, now + grows, shards, ActorLimits())
    assert pool == Pool(least=1, most=max(1, min(now + grows, shards)))
    assert size_pool(now, now + grows + 1, shards + 1, ActorLimits()).most >= pool.most


def test_more_memory_than_any_node_has_is_told_in_one_line() -> None:
    check_memory(None, 1 << 30)
    check_memory(1 << 30, None)
    with pytest.raises(InputError, match=r"^--memory 8GiB: the largest node .* lends 2 GiB to actors; ask for less$"):
        check_memory(8 << 30, 2 << 30)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"max_actors": 0}, "max_actors=0 is out of range; choose 1 or more"),
        ({"min_actors": -1}, "min_actors=-1 is out of range; choose 1 or more"),
        ({"gpus": -1}, "gpus=-1 is out of range; choose 0 or more"),
        ({"min_actors": 4, "max_actors": 2}, "min_actors=4 is more than max_actors=2"),
        ({"memory": 2}, "memory=2 bytes is too little for an actor; write 2GiB or 512MiB"),
    ],
)
def test_limits_that_cannot_be_are_refused_in_one_line(wrong: dict[str, int], line: str) -> None:
    with pytest.raises(InputError) as refused:
        ActorLimits(**wrong)
    assert str(refused.value) == line
