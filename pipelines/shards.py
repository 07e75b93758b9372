"""Work cut into shards, on Ray Data: one row of the dataset is one shard, one call of an actor does it whole.

The last actor writes what it makes and returns a small summary, so that a shard that is done is safe, whatever happens
to the run. With one stage nothing large crosses the object store.
"""

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines import errors

PATIENCE: Final = 3600.0
"""Seconds without a shard done after which a run stops: an actor that dies as it starts is started again for ever. Only
a shard in which dozens of films hang takes longer."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pool of actors that every shard passes through."""

    actor: type
    """Called with batches of one row, a dict of arrays of one element; its name is what the Ray dashboard shows."""
    settings: Mapping[str, Any]
    """What the actor is constructed with; keep it small: a restarted actor gets it again."""
    actors: int
    most_actors: int | None = None
    """Where the cluster may grow: it is asked for as many while there are shards for them."""
    cpus: int = 1
    gpus: int = 0


def run_shards(name: str, shards: Sequence[Mapping[str, Any]], *stages: Stage) -> Generator[dict[str, Any], None, None]:
    """Yield the summary of each shard as it ends, in no particular order; Ray is initialised already.

    The first stage gets the shards, each next one the rows of the one before; the last one returns JSON values.
    Close it (`contextlib.closing`) where the loop over it may be left early.
    A `RayscanError` that ends an actor's start or call is raised here again, as itself. Raises `IncompleteError` when
    Ray cannot go on: its actors do not start, or die faster than it starts them again.
    """
    import ray.data.exceptions  # noqa: PLC0415 (the rooms that use this are read without Ray, too)
    import ray.exceptions  # noqa: PLC0415

    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = PATIENCE
    context.enable_progress_bars = False  # the caller counts what people count: scans, not shards
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that the bars are off
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # prints what is raised here anyway
    dataset: ray.data.Dataset = ray.data.from_items([dict(shard) for shard in shards], override_num_blocks=len(shards))
    for stage in stages:
        grows = (stage.most_actors or 0) > stage.actors
        pool = {"min_size": stage.actors, "max_size": stage.most_actors} if grows else {"size": stage.actors}
        dataset = dataset.map_batches(
            _guarded(stage.actor, last=stage is stages[-1]),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(**pool),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus or None,
            fn_constructor_kwargs=dict(stage.settings),
        )
    dataset.set_name(name)
    rows = iter(dataset.iter_rows())
    try:
        for row in rows:
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield json.loads(row["summary"])
    except ray.exceptions.UserCodeException:
        raise  # a fault of ours, which wants its traceback
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        raise errors.IncompleteError(_ray_failed(error)) from error
    finally:
        # Now, while Ray is there: left to the garbage collector, what runs the dataset asks a Ray that is gone, starts
        # another and brings the process down.
        if isinstance(rows, Generator):
            rows.close()


def _ray_failed(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        f"Ray could not go on ({type(error).__name__}: {said}); its logs say why. If no actor starts at all on a"
        " cluster without token authentication, set RAY_AUTH_MODE=disabled. Then run the same command again"
    )


def _guarded(actor: type, *, last: bool) -> type:
    """The actor with errors of our own as values: Ray keeps only the text of what a worker raises."""

    def start(self: Any, **settings: Any) -> None:
        self.actor = self.refusal = None
        try:
            self.actor = actor(**settings)
        except errors.RayscanError as error:
            self.refusal = error

    def call(self: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if "error" in batch and batch["error"][0]:
            return batch
        try:
            if self.refusal:
                raise self.refusal
            made = self.actor(batch)
        except errors.RayscanError as error:
            return {"summary": [""], "error": [type(error).__name__], "message": [str(error)]}
        if not last:
            return {**made, "error": [""]}
        summary = json.dumps({name: values[0] for name, values in made.items()})
        return {"summary": [summary], "error": [""], "message": [""]}

    return type(actor.__name__, (), {"__init__": start, "__call__": call})


def cluster_size() -> tuple[int, int]:
    """CPUs, at least one, and GPUs of the cluster as it is now."""
    import ray  # noqa: PLC0415

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return max(1, sum(int(n.get("CPU", 0)) for n in nodes)), sum(int(n.get("GPU", 0)) for n in nodes)
