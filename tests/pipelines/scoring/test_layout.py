"""From cluster facts to actors."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.scoring.layout import LARGEST_BLOCK, choose_layout


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 64), shards=st.integers(0, 10_000))
def test_a_layout_never_asks_for_more_than_there_is(cpus: int, gpus: int, shards: int) -> None:
    layout = choose_layout(cpus, gpus, shards)
    assert 1 <= layout.actors <= max(1, shards)
    assert layout.decoders <= max(1, shards)
    held = layout.decoders if gpus else layout.actors
    assert held <= cpus
    assert layout.actors * layout.gpus_per_actor <= gpus
    assert str(cpus) in layout.reason


def test_cpu_machines_get_an_actor_a_core_that_does_all() -> None:
    layout = choose_layout(16, 0, 100)
    assert (layout.actors, layout.is_split, layout.gpus_per_actor) == (16, False, 0)


def test_gpus_infer_and_every_core_feeds_them() -> None:
    layout = choose_layout(32, 4, 100)
    assert (layout.actors, layout.decoders, layout.gpus_per_actor) == (4, 32, 1)
    assert "4 GPUs" in layout.reason


def test_shards_too_large_to_hand_over_are_decoded_beside_the_gpu() -> None:
    layout = choose_layout(32, 4, 100, shard_bytes=LARGEST_BLOCK + 1)
    assert (layout.actors, layout.decoders, layout.gpus_per_actor) == (4, 0, 1)
    assert "too large" in layout.reason


def test_a_cluster_that_grows_is_asked_for_no_more_than_there_is_to_do() -> None:
    layout = choose_layout(2, 0, 100, most_actors=64)
    assert (layout.actors, layout.most_actors) == (2, 64)
    assert "up to 64" in layout.reason
    assert choose_layout(2, 0, 10, most_actors=64).most_actors == 10
