"""How many nodes one driver can serve, by stand-ins for nodes that wait as long as a node works.

A stand-in is one actor, on one logical CPU, that takes a shard and waits for as long as a node of eight cores scores
it. So the work of the nodes costs this machine nothing, and what is left is what grows with their number: Ray Data's
scheduling, the driver's loop, the commits to the table. Network and archive are not in it.

In the split layout films go from decoders to inference through the object store of their own node, whatever the number
of nodes; `test_films_through_the_object_store` measures that.
"""

import os
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipelines.scoring.commits import GroupCommits
from pipelines.shards import Stage, run_shards
from pipelines.storage import open_store
from pipelines.table.delta import Part, create_table, part_folder

NODES = tuple(int(count) for count in os.environ.get("RAYSCAN_BENCH_NODES", "8 16 64").split())
NODE_RATE = 1000.0
"""Scans a second of a node of eight cores, were each as fast as the two of tests/benchmarks/README.md: 125 a core."""
SHARD_SCANS = (256, 2048)
"""The shards of a small night, and of one of a few million scans."""
SHARDS_PER_NODE = 40
DAY = date(2026, 1, 1)
RUN = "20260101T020000Z-abc123"
MODEL = "aaaa000011112222"

SHARD_BYTES = 256 * 224 * 224
"""Grey levels of 256 films of 224 px."""
FILM_SHARDS = 200


class Node:
    """Stands for the actors of a node."""

    def __init__(self, scans: int) -> None:
        self.scans = scans

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Takes a shard; returns the summary after as long as the node would have taken."""
        threading.Event().wait(self.scans / NODE_RATE)  # the work that it stands for
        return {"shard": [int(batch["shard"][0])], "scans": [self.scans]}


class Decoders:
    """Gives shards of films at once."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Takes a shard; returns its films, all black."""
        return {"shard": [int(batch["shard"][0])], "pixels": [bytes(SHARD_BYTES)]}


class Inference:
    """Takes shards of films and does nothing with them."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Takes a shard's films; returns how many bytes they have."""
        pixels = np.frombuffer(batch["pixels"][0], np.uint8)
        return {"shard": [int(batch["shard"][0])], "bytes": [pixels.size]}


@pytest.mark.bench
@pytest.mark.parametrize("scans", SHARD_SCANS)
@pytest.mark.parametrize("nodes", NODES)
def test_scans_a_second_by_nodes(nodes: int, scans: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    count = nodes * SHARDS_PER_NODE
    commits = GroupCommits(create_table(open_store(str(tmp_path)), conditional=True), RUN)
    process, ends = psutil.Process(), []
    ray.init("local", num_cpus=nodes, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        node = Stage(actor=Node, settings={"scans": scans}, actors=nodes)
        for summary in run_shards(f"{nodes}-nodes", [{"shard": shard} for shard in range(count)], node):
            key = f"{part_folder(MODEL, f'{DAY}')}/{RUN}-{summary['shard']:05d}.parquet"
            commits.add(Part(key=key, size=scans * 100, rows=summary["scans"], model_id=MODEL, date=DAY))
            ends.append(time.perf_counter())
        commits.flush()
        cpu = sum(process.cpu_times()[:2]) - before
    finally:
        ray.shutdown()
    # Between a quarter and three: every node is there, and none is out of work yet.
    first, last = count // 4, 3 * count // 4
    rate = (last - first) * scans / (ends[last] - ends[first])
    with capsys.disabled():
        print(
            f"\n{nodes} nodes, shards of {scans}: {rate:,.0f} scans/s, {rate / nodes / NODE_RATE:.0%} of theirs;",
            end="",
        )
        print(f" driver {1000 * cpu / count:.1f} CPU-ms a shard; first shard after {ends[0] - began:.1f} s", end="")
    assert len(ends) == count


@pytest.mark.bench
@pytest.mark.usefixtures("ray_of_this_machine")
def test_films_through_the_object_store(capsys: pytest.CaptureFixture[str]) -> None:
    ends, size = [], 0
    stages = [Stage(actor=actor, settings={}, actors=1) for actor in (Decoders, Inference)]
    for summary in run_shards("films", [{"shard": shard} for shard in range(FILM_SHARDS)], *stages):
        ends.append(time.perf_counter())
        size += summary["bytes"]
    first, last = FILM_SHARDS // 4, 3 * FILM_SHARDS // 4
    rate = (last - first) * SHARD_BYTES / (ends[last] - ends[first])
    with capsys.disabled():
        print(f"\n{rate / 1e6:,.0f} MB/s, {rate / 224**2:,.0f} films of 224 px a second", end="")
    assert size == FILM_SHARDS * SHARD_BYTES
