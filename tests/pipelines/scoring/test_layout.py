"""From cluster facts to actors."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.scoring.layout import choose_layout


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 64), shards=st.integers(0, 10_000))
def test_a_layout_never_asks_for_more_than_there_is(cpus: int, gpus: int, shards: int) -> None:
    layout = choose_layout(cpus, gpus, shards)
    assert layout.actors >= 1
    assert layout.actors <= max(1, shards)
    assert layout.actors * layout.cpus_per_actor <= max(cpus, gpus)
    assert layout.actors * layout.gpus_per_actor <= gpus
    assert str(cpus) in layout.reason


def test_cpu_machines_get_an_actor_a_core() -> None:
    assert choose_layout(16, 0, 100).actors == 16


def test_gpu_machines_get_an_actor_a_gpu_with_its_share_of_the_cores() -> None:
    layout = choose_layout(32, 4, 100)
    assert (layout.actors, layout.cpus_per_actor, layout.gpus_per_actor) == (4, 8, 1)
