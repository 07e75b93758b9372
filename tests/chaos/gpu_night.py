"""A night in the split layout whose actors only wait, for a cluster whose GPUs are numbers: started as a program.

The actors have the names of the real ones, and the layout is chosen as for a model that pays on a GPU. Prints what was
chosen and used as JSON.
"""

import json
import sys
import threading
from contextlib import closing
from dataclasses import asdict
from typing import Any

from cluster.session import ray_session
from pipelines.capacity import cluster_capacity
from pipelines.pools import ActorLimits
from pipelines.scoring.layout import choose_layout, gpus_wanted
from pipelines.shards import Stage, Used, run_shards

SHARDS = 60
SECONDS = 0.5
PAYS_ON_GPU = {"val": {"engines": {"torch-compile-fp16-cuda": {"allowed": True}}}}


class ReadShard:
    """Stands for decoding a shard."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Takes a shard; returns it after a while."""
        threading.Event().wait(SECONDS)  # the work that it stands for
        return {"shard": [int(batch["shard"][0])]}


class InferShard:
    """Stands for inference on a GPU."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Takes a decoded shard; returns its summary."""
        return {"shard": [int(batch["shard"][0])]}


def main(address: str) -> None:
    """The night."""
    with ray_session(address, working_on="score"):
        capacity = cluster_capacity()
        gpus = gpus_wanted(capacity.gpus, capacity.most_gpus, ActorLimits(), PAYS_ON_GPU)
        most_cpus = capacity.most_room(gpus=gpus)
        layout = choose_layout(capacity.cpus, capacity.gpus, SHARDS, most_cpus=most_cpus, most_gpus=gpus)
        infer, read, used = layout.actors, layout.decoders, Used()
        stages = [
            Stage(actor=ReadShard, settings={}, actors=read.most, least=read.least),
            Stage(
                actor=InferShard,
                settings={},
                actors=infer.most,
                least=infer.least,
                cpus=0,
                gpus=layout.gpus_per_actor,
            ),
        ]
        shards = [{"shard": shard} for shard in range(SHARDS)]
        with closing(run_shards("score", shards, *stages, used=used)) as summaries:
            done = sorted(summary["shard"] for summary in summaries)
        print(json.dumps({"layout": layout.reason, "done": done, "used": asdict(used.so_far)}))


if __name__ == "__main__":
    main(sys.argv[1])
