"""Work cut into shards, on Ray Data: one row of the dataset is one shard, one call of an actor does it whole.

The actor writes what it makes and returns a small summary, so that nothing large crosses the object store and a shard
that is done is safe, whatever happens to the run.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines import errors


def run_shards(
    name: str,
    shards: Sequence[Mapping[str, Any]],
    actor: type,
    settings: Mapping[str, Any],
    *,
    actors: int,
    cpus: int = 1,
    gpus: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yield the summary of each shard as it ends, in no particular order; Ray is initialised already.

    `actor(**settings)` is called with batches of one row, a dict of arrays of one element; `name` and the actor's own
    name are what the Ray dashboard shows. Keep `settings` small: a restarted actor gets them again. Summaries are JSON
    values. A `RayscanError` that ends an actor's start or call is raised here again, as itself.
    """
    import ray.data  # noqa: PLC0415 (the rooms that use this are read without Ray, too)

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the caller counts what people count: scans, not shards
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that the bars are off
    dataset = ray.data.from_items([dict(shard) for shard in shards], override_num_blocks=len(shards)).map_batches(
        _guarded(actor),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus or None,
        fn_constructor_kwargs=dict(settings),
    )
    dataset.set_name(name)
    for row in dataset.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"])(row["message"])
        yield json.loads(row["summary"])


def _guarded(actor: type) -> type:
    """The actor with errors of our own as values: Ray keeps only the text of what a worker raises."""

    def start(self: Any, **settings: Any) -> None:
        self.actor = self.refusal = None
        try:
            self.actor = actor(**settings)
        except errors.RayscanError as error:
            self.refusal = error

    def call(self: Any, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        try:
            if self.refusal:
                raise self.refusal
            summary = self.actor(batch)
        except errors.RayscanError as error:
            return {"summary": [""], "error": [type(error).__name__], "message": [str(error)]}
        return {"summary": [json.dumps({name: values[0] for name, values in summary.items()})], "error": [""],
                "message": [""]}  # fmt: skip

    return type(actor.__name__, (), {"__init__": start, "__call__": call})


def cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of the cluster as it is now, as `usable` counts them."""
    import ray  # noqa: PLC0415

    return usable([node["Resources"] for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]


def usable(nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs that actors can hold, of nodes with these Ray resources; at least one CPU.

    An actor lives on one node. With GPUs, only CPUs beside them count, as many for each as the poorest node has: an
    actor that asked for its share of a large CPU-only head node would fit nowhere, and Ray would wait for ever.
    """
    beside = [(node.get("CPU", 0), int(node["GPU"])) for node in nodes if node.get("GPU", 0) >= 1]
    gpus = sum(gpu for _, gpu in beside)
    cpus = gpus * min(int(cpu // gpu) for cpu, gpu in beside) if beside else sum(int(n.get("CPU", 0)) for n in nodes)
    return max(1, cpus), gpus
