"""What a run says while its actors wait: once, with who holds what they want, and when they go on."""

from collections.abc import Sequence

from pipelines.claims import Claim
from pipelines.waiting import Waiting


def _actor(node: str | None, job: str = "mine", *, name: str = "ScoreShard", cpus: float = 1, gpus: float = 0) -> Claim:
    return Claim(job=job, name=name, cpus=cpus, gpus=gpus, node=node)


def _lines(looks: Sequence[tuple[float, Sequence[Claim]]], cpus: float = 0) -> list[tuple[float, str]]:
    waiting = Waiting("mine", lambda jobs: {job: {"other": "tune"}.get(job, f"job {job}") for job in jobs})
    return [(at, line) for at, found in looks if (line := waiting.look(found, (cpus, 0), at))]


def test_a_run_that_has_all_its_places_is_silent() -> None:
    assert not _lines([(0, []), (5, [_actor("a"), _actor("a")]), (10, [_actor("a")]), (200, [])])


def test_actors_that_wait_for_a_moment_are_not_spoken_of() -> None:
    assert not _lines([(0, [_actor(None)]), (4, [_actor(None)]), (5, [_actor("a")]), (60, [_actor("a")])])


def test_who_holds_the_cpus_is_named_once_a_minute_and_the_end_is_told() -> None:
    stuck = [_actor(None), _actor(None), _actor("a", "other", cpus=3), _actor("b", "02", cpus=0, gpus=1)]
    looks = [(float(at), stuck) for at in range(0, 121, 5)]
    line = "waiting for 2 CPUs, held by job 02 (1 GPU), tune (3 CPUs)"
    ended = [(125.0, [_actor("a"), _actor("a")]), (130.0, [_actor("a")])]
    assert _lines([*looks, *ended]) == [(5, line), (65, line), (125, "goes on: all 2 actors have their place")]


def test_one_place_is_enough_to_go_on_and_what_is_missing_is_said_once() -> None:
    some = [_actor("a"), _actor(None), _actor(None)]
    looks = [(0.0, [_actor(None)] * 3), (5.0, [_actor(None)] * 3), *((float(at), some) for at in range(10, 300, 5))]
    assert _lines(looks) == [
        (5, "waiting for 3 CPUs, which no other job's actors hold: the cluster has to grow"),
        (10, "goes on: 1 of 3 actors have their place"),
    ]
    assert _lines([(float(at), some) for at in range(0, 300, 5)]) == [
        (5, "1 of 3 actors are at work; waiting for 2 CPUs, which no other job's actors hold: the cluster has to grow")
    ]


def test_a_stage_without_any_place_holds_up_the_whole_run() -> None:
    looks = [(float(at), [_actor("a"), _actor(None, name="InferShard", cpus=0, gpus=1)]) for at in range(0, 70, 5)]
    line = "1 of 2 actors are at work; waiting for 1 GPU, which no other job's actors hold: the cluster has to grow"
    assert _lines(looks) == [(5, line), (65, line)]


def test_where_there_is_room_a_process_is_only_being_started() -> None:
    looks = [(float(at), [_actor(None), _actor("a", "other")]) for at in range(0, 70, 5)]
    assert not _lines([*looks[:12], (60.0, [_actor("a")])], cpus=2)
    assert _lines(looks, cpus=2) == [(60, "waiting for 1 CPU, held by tune (1 CPU)")]
    assert _lines(looks[:2], cpus=1) == [(5, "waiting for 1 CPU, held by tune (1 CPU)")]
