"""Shards on a real Ray: every one is done, and what goes wrong in a worker reads as it does in the driver."""

import os
import re
import time
from typing import Any

import pytest

from pipelines import shards, waiting
from pipelines.errors import BundleError, IncompleteError, StorageError
from pipelines.shards import Stage, Used, run_shards
from pipelines.usage import Usage


class Square:
    """Squares its shard's number; refuses the one it is told to."""

    def __init__(self, refused: int) -> None:
        self.refused = refused

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (number,) = (int(value) for value in batch["shard"])
        if number == self.refused:
            raise StorageError(f"s3://bucket/{number}: the store failed")
        return {"shard": [number], "square": [number**2], "name": [f"shard {number}"]}


class Refuses(Square):
    """Cannot even start, as on a node that does not see the bundle."""

    def __init__(self, refused: int) -> None:
        raise BundleError(f"bundle {refused}: not on this node")


SHARDS = [{"shard": number} for number in range(7)]


@pytest.mark.usefixtures("ray_session")
def test_every_shard_is_done_once() -> None:
    assert Used().so_far == Usage()
    found = list(run_shards("squares", SHARDS, Stage(actor=Square, settings={"refused": -1}, actors=2)))
    assert sorted(row["shard"] for row in found) == list(range(7))
    assert all(row["square"] == row["shard"] ** 2 and row["name"] == f"shard {row['shard']}" for row in found)


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_ours_keeps_its_kind_and_its_line() -> None:
    with pytest.raises(StorageError, match=r"^s3://bucket/3: the store failed$"):
        list(run_shards("squares", SHARDS, Stage(actor=Square, settings={"refused": 3}, actors=1)))


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_cannot_start_says_why() -> None:
    with pytest.raises(BundleError, match=r"^bundle 3: not on this node$"):
        list(run_shards("squares", SHARDS, Stage(actor=Refuses, settings={"refused": 3}, actors=1)))


class Dies(Square):
    """Ends its process before it is there, as on a cluster that does not let it in."""

    def __init__(self, refused: int) -> None:
        os._exit(refused)


@pytest.mark.usefixtures("ray_session")
def test_actors_that_die_as_they_start_are_given_up_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "PATIENCE", 5.0)
    with pytest.raises(
        IncompleteError, match=r"^Ray could not continue \(ExecutionTimeoutError: .*\n?.*the same command"
    ):
        list(run_shards("squares", SHARDS, Stage(actor=Dies, settings={"refused": 3}, actors=1)))
    assert "Traceback" not in capfd.readouterr().err


class Halve:
    """Takes what Square made, with a buffer beside it; refuses the one it is told to."""

    def __init__(self, refused: int) -> None:
        self.refused = refused

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["shard"][0])
        if number == self.refused:
            raise BundleError(f"{number}: refused by the second stage")
        return {"shard": [number], "half": [int(batch["square"][0]) / 2], "bytes": [len(batch["name"][0])]}


def _stages(*, first: int, second: int) -> list[Stage]:
    return [
        Stage(actor=Square, settings={"refused": first}, actors=1),
        Stage(actor=Halve, settings={"refused": second}, actors=2),
    ]


@pytest.mark.usefixtures("ray_session")
def test_shards_pass_through_every_stage() -> None:
    used = Used()
    found = list(run_shards("halves", SHARDS, *_stages(first=-1, second=-1), used=used))
    assert used.so_far.nodes == 1
    assert 1 <= used.so_far.actors == used.so_far.cpus <= 3
    assert sorted(row["half"] for row in found) == [number**2 / 2 for number in range(7)]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("first", "second", "error"), [(3, -1, StorageError), (-1, 3, BundleError)])
def test_an_error_of_any_stage_reaches_the_caller(first: int, second: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="3"):
        list(run_shards("halves", SHARDS, *_stages(first=first, second=second)))


class Slow(Square):
    """Takes long enough for its fellows to be there."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        time.sleep(0.5)  # the work itself: nothing is waited for
        return super().__call__(batch)


@pytest.mark.usefixtures("ray_session")
def test_what_was_used_is_counted_and_who_waits_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.2)
    caplog.set_level("INFO", "rayscan")
    used, work = Used(), [{"shard": number} for number in range(40)]
    stage = Stage(actor=Slow, settings={"refused": -1}, actors=6)
    assert len(list(run_shards("slow", work, stage, used=used))) == 40
    assert used.so_far == Usage(actors=4, cpus=4, gpus=0, nodes=1), "there is room for four"
    lines = [record.getMessage() for record in caplog.records]
    assert any(re.search(r"waiting for \d CPUs, which no other job's actors hold", line) for line in lines)
