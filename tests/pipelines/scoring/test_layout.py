"""From cluster facts to actors."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.pools import ActorLimits, Pool
from pipelines.scoring.layout import LARGEST_BLOCK, choose_layout, gpus_wanted, pays_on_gpu

COUNTS = st.integers(0, 512)
CHOICES = st.none() | st.integers(1, 64)


@given(
    cpus=COUNTS,
    grows=COUNTS,
    gpus=st.integers(0, 64),
    wanted=st.integers(0, 64),
    shards=st.integers(1, 10_000),
    limited=st.tuples(CHOICES, CHOICES).filter(lambda two: not all(two) or two[0] <= two[1]),
)
def test_a_layout_is_as_wide_as_the_cluster_can_get_and_never_wider_than_the_work(
    cpus: int,
    grows: int,
    gpus: int,
    wanted: int,
    shards: int,
    limited: tuple[int | None, int | None],
) -> None:
    least, most = limited
    layout = choose_layout(
        cpus,
        gpus,
        shards,
        most_cpus=cpus + grows,
        most_gpus=wanted,
        limits=ActorLimits(min_actors=least, max_actors=most),
    )
    cores = layout.decoders if layout.is_split else layout.actors
    assert 1 <= cores.least <= cores.most <= shards
    assert cores.most <= (most or max(1, cpus + grows))
    assert 1 <= layout.actors.least <= layout.actors.most <= shards
    on_gpus = layout.actors.most * layout.gpus_per_actor
    assert on_gpus == min(shards, wanted)
    assert layout.is_split == (on_gpus > 0)


def test_cpu_machines_get_an_actor_a_core_that_does_all() -> None:
    layout = choose_layout(16, 0, 100)
    assert (layout.actors, layout.is_split, layout.gpus_per_actor) == (Pool(least=1, most=16), False, 0)
    assert layout.reason == "no GPU, 16 CPUs: 16 actors of one core that fetch, decode and infer in place"


def test_gpus_infer_and_every_core_feeds_them() -> None:
    layout = choose_layout(32, 4, 100)
    assert (layout.actors.most, layout.decoders.most, layout.gpus_per_actor) == (4, 32, 1)
    assert layout.actors.least == 4, "idle for a moment, they are not given up: a model takes long to load"
    assert "4 GPUs" in layout.reason


def test_shards_too_large_to_hand_over_are_decoded_beside_the_gpu() -> None:
    layout = choose_layout(32, 4, 100, shard_bytes=LARGEST_BLOCK + 1)
    assert (layout.actors.most, layout.decoders.most, layout.gpus_per_actor) == (4, 0, 1)
    assert "too large" in layout.reason


def test_a_cluster_of_no_nodes_is_sized_by_what_it_can_become() -> None:
    layout = choose_layout(0, 0, 100, most_cpus=64)
    assert layout.actors == Pool(least=1, most=64)
    assert layout.reason.startswith("no GPU, 0 of 64 CPUs: 64 actors")
    assert choose_layout(0, 0, 10, most_cpus=64).actors.most == 10
    assert choose_layout(0, 0, 10).actors.most == 1, "what it can become is not known"


def test_gpu_nodes_are_started_for_a_model_that_gains_by_them_or_when_a_person_asks() -> None:
    gains = {"val": {"engines": {"torch-compile-bf16-cuda": {"allowed": True}}}}
    free = ActorLimits()
    assert [gpus_wanted(1, 4, free, evaluation) for evaluation in ({}, gains)] == [1, 4]
    assert [gpus_wanted(1, 4, ActorLimits(gpus=asked), gains) for asked in (0, 2, 8)] == [0, 2, 8]
    assert choose_layout(0, 0, 100, most_cpus=64, most_gpus=4).actors == Pool(least=1, most=4)
    assert not choose_layout(8, 4, 100, most_gpus=0).gpus_per_actor


def test_a_person_limits_the_actors() -> None:
    limits = ActorLimits(min_actors=3, max_actors=5, memory=2 << 30)
    layout = choose_layout(2, 0, 100, most_cpus=64, limits=limits)
    assert layout.actors == Pool(least=3, most=5)
    assert layout.memory == 2 << 30


def test_a_model_gains_by_a_gpu_if_it_was_found_to_agree_there() -> None:
    def compared(name: str, allowed: bool) -> dict[str, object]:
        return {"val": {"engines": {name: {"allowed": allowed}}}}

    assert pays_on_gpu(compared("torch-compile-bf16-cuda", True))
    assert not pays_on_gpu(compared("torch-compile-bf16-cuda", False))
    assert not pays_on_gpu(compared("openvino-bf16-cpu", True))
    assert not pays_on_gpu({})
