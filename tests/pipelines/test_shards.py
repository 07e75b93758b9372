"""Shards on a real Ray: every one is done, and what goes wrong in a worker reads as it does in the driver."""

from typing import Any

import pytest

from pipelines.errors import BundleError, StorageError
from pipelines.shards import cluster_size, run_shards, usable


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
    found = list(run_shards("squares", SHARDS, Square, {"refused": -1}, actors=2))
    assert sorted(row["shard"] for row in found) == list(range(7))
    assert all(row["square"] == row["shard"] ** 2 and row["name"] == f"shard {row['shard']}" for row in found)


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_ours_keeps_its_kind_and_its_line() -> None:
    with pytest.raises(StorageError, match=r"^s3://bucket/3: the store failed$"):
        list(run_shards("squares", SHARDS, Square, {"refused": 3}, actors=1))


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_cannot_start_says_why() -> None:
    with pytest.raises(BundleError, match=r"^bundle 3: not on this node$"):
        list(run_shards("squares", SHARDS, Refuses, {"refused": 3}, actors=1))


@pytest.mark.usefixtures("ray_session")
def test_the_size_of_the_cluster_is_rays() -> None:
    assert cluster_size() == (4, 0)


def test_cpus_count_where_an_actor_fits() -> None:
    head, odd, small, large = {"CPU": 16.0}, {"CPU": 0.5}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 32.0, "GPU": 2.0}
    assert usable([]) == (1, 0)
    assert usable([head, odd, odd]) == (16, 0)
    assert usable([small]) == (8, 1)
    assert usable([head, small, small]) == (16, 2), "8 for each GPU; the head's are not beside one"
    assert usable([small, large]) == (24, 3), "as many for each GPU as the poorest node has"
    assert usable([{"GPU": 1.0}]) == (1, 1)
