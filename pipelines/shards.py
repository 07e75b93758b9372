"""Work cut into shards, on Ray Data: one row of the dataset is one shard, one call of an actor does it whole.

The last actor writes its result itself and returns a small summary, so a finished shard is safe whatever happens to the
run. With one stage nothing large crosses the object store.
"""

import json
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from models.messages import first_line
from pipelines import errors
from pipelines.capacity import asked_for
from pipelines.usage import Stint, Usage, usage
from pipelines.waiting import told_when_waiting

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
    """Asked for at once, and the most at a time; those for which there is no place yet wait for one."""
    least: int = 1
    """Idle actors above this number are given up."""
    cpus: int = 1
    gpus: int = 0
    memory: int | None = None
    """Bytes each actor asks Ray for; None: it asks for none, and Ray places it by its cores alone."""

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What the actors ask the cluster for."""
        wants = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory or 0)}
        return [{name: amount for name, amount in wants.items() if amount}] * self.actors


class Used:
    """Takes in what the actors of a run say about themselves."""

    def __init__(self) -> None:
        self._stints: list[Stint] = []
        self._sizes: list[tuple[int, int]] = []

    def begin(self, stages: Sequence[Stage]) -> None:
        """Note the sizes of the actors."""
        self._sizes = [(stage.cpus, stage.gpus) for stage in stages]

    def add(self, stints: str) -> None:
        """Note what was done for one shard; JSON."""
        self._stints += [Stint(**stint) for stint in json.loads(stints)]

    @property
    def so_far(self) -> Usage:
        """The sums."""
        return usage(self._stints, self._sizes)


def run_shards(
    name: str, shards: Sequence[Mapping[str, Any]], *stages: Stage, used: Used | None = None
) -> Generator[dict[str, Any], None, None]:
    """Yield the summary of each shard as it ends, in no particular order; Ray is already initialised.

    The first stage gets the shards, each later one the rows of the stage before; the last returns JSON values.
    The autoscaler is asked for room for all actors; a run that waits for it says so. `used` learns what was used.
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
    # Warns that the job may hang where `waiting.py` says what it waits for.
    logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # repeats what is raised here anyway
    dataset: ray.data.Dataset = ray.data.from_items([dict(shard) for shard in shards], override_num_blocks=len(shards))
    for index, stage in enumerate(stages):
        dataset = dataset.map_batches(
            _guarded(stage.actor, index, last=stage is stages[-1]),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=stage.least, max_size=stage.actors, initial_size=stage.actors),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus or None,
            memory=stage.memory,
            fn_constructor_kwargs=dict(stage.settings),
        )
    dataset.set_name(name)
    used = used or Used()
    used.begin(stages)
    rows = iter(dataset.iter_rows())
    try:
        with asked_for(_beyond(stages)) as placed, told_when_waiting(placed):
            for row in rows:
                if row["error"]:
                    raise getattr(errors, row["error"])(row["message"])
                used.add(row["stints"])
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


def _beyond(stages: Sequence[Stage]) -> list[dict[str, float]]:
    """What all actors ask for, if the cluster does not have as much; nothing if it has."""
    import ray  # noqa: PLC0415

    have: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    bundles = [bundle for stage in stages for bundle in stage.bundles]
    asks = {what: sum(bundle.get(what, 0.0) for bundle in bundles) for what in ("CPU", "GPU", "memory")}
    return bundles if any(amount > have.get(what, 0.0) for what, amount in asks.items()) else []


def _guarded(actor: type, index: int, *, last: bool) -> type:
    """The actor of a stage, returning `RayscanError`s as values: Ray keeps only the text of what a worker raises.

    With each row go the stints: who worked on it, where and when.
    """

    def start(self: Any, **settings: Any) -> None:
        import ray  # noqa: PLC0415

        self.node = ray.get_runtime_context().get_node_id()
        self.actor = self.refusal = None
        try:
            self.actor = actor(**settings)
        except errors.RayscanError as error:
            self.refusal = error

    def call(self: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if "error" in batch and batch["error"][0]:
            return batch
        began = time.time()
        try:
            if self.refusal:
                raise self.refusal
            made = self.actor(batch)
        except errors.RayscanError as error:
            return {"summary": [""], "error": [type(error).__name__], "message": [str(error)], "stints": [""]}
        before = json.loads(batch["stints"][0]) if "stints" in batch else []
        stint = Stint(stage=index, node=self.node, began=began, ended=time.time())
        stints = json.dumps([*before, asdict(stint)])
        if not last:
            return {**made, "error": [""], "stints": [stints]}
        summary = json.dumps({name: values[0] for name, values in made.items()})
        return {"summary": [summary], "error": [""], "message": [""], "stints": [stints]}

    return type(actor.__name__, (), {"__init__": start, "__call__": call})
