"""Work cut into shards, on Ray Data: one row of the dataset is one shard, one call of an actor does it whole.

The last actor writes its result itself and returns a small summary, so a finished shard is safe whatever happens to the
run. With one stage nothing large crosses the object store.
"""

import json
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.messages import first_line
from pipelines import errors

PATIENCE: Final = 3600.0
"""Seconds without a finished shard after which a run stops, because Ray restarts an actor that dies at its start for
ever. Only a shard in which dozens of films hang takes longer."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pool of actors that every shard passes through."""

    actor: type
    """Called with batches of one row, a dict of arrays of one element. The Ray dashboard shows its name."""
    settings: Mapping[str, Any]
    """Arguments of the actor's constructor; keep them small: a restarted actor gets them again."""
    actors: int
    most_actors: int | None = None
    """On an autoscaling cluster: the most actors to ask for while there are shards for them."""
    cpus: int = 1
    gpus: int = 0


def run_shards(name: str, shards: Sequence[Mapping[str, Any]], *stages: Stage) -> Generator[dict[str, Any], None, None]:
    """Yield the summary of each shard as it ends, in no particular order; Ray is already initialised.

    The first stage gets the shards, each later one the rows of the stage before; the last returns JSON values.
    Close the generator (`contextlib.closing`) if the loop over it may be left early.
    A `RayscanError` raised in an actor is raised again here, with its type. Raises `ClusterError` when Ray cannot
    continue: its actors do not start, or die faster than they are restarted.
    """
    import ray.data.exceptions  # noqa: PLC0415 (modules that use this are also imported without Ray)
    import ray.exceptions  # noqa: PLC0415

    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = PATIENCE
    context.enable_progress_bars = False  # the caller shows progress in scans, not shards
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # only says that the bars are off
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # repeats what is raised here anyway
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
        raise  # a bug of rayscan: keep the traceback
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        raise errors.ClusterError(_ray_failed(error)) from error
    finally:
        # Close now, while Ray is up: if left to the garbage collector, the running dataset asks a Ray that is gone,
        # starts another one and crashes the process.
        if isinstance(rows, Generator):
            rows.close()


def _ray_failed(error: Exception) -> str:
    return (
        f"Ray could not continue ({type(error).__name__}: {first_line(error)}); its logs say why. If no actor starts at"
        " all on a cluster without token authentication, set RAY_AUTH_MODE=disabled. Then run the same command again"
    )


def _guarded(actor: type, *, last: bool) -> type:
    """The actor, returning `RayscanError`s as values: Ray keeps only the text of what a worker raises."""

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
    """The cluster's current numbers of CPUs (at least one) and GPUs."""
    import ray  # noqa: PLC0415

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return max(1, sum(int(n.get("CPU", 0)) for n in nodes)), sum(int(n.get("GPU", 0)) for n in nodes)
