"""Chooses the layout of the scoring job from the size of the plan and from what the cluster can become.

Without GPUs one actor per core fetches (in threads), decodes and infers, so no pixels cross the object store. With GPUs
one actor per core, on any node, fetches and decodes to uint8, and one actor per GPU infers and writes; Ray Data slows
the decoders down when the GPUs cannot keep up. GPU actors request no CPU: otherwise decoders that fill a GPU's node
before its actor starts would block it for ever, and the fast stage would take the CPUs of the slow one.

All actors are asked for at once. Those without a place wait, and are what the autoscaler starts nodes for: on a cluster
of no nodes, a pool that starts at one and grows took 23 s for what a pool that starts at its full size did in 15 s, and
pools on GPUs do not grow by themselves. Actors that still wait when the work is done are given up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pipelines.pools import ActorLimits, Pool, size_pool

THREADS: Final = 2
"""Threads with which an actor starts to fetch and decode; `films.py` adds more if they wait."""
LARGEST_BLOCK: Final = 256 << 20
"""Most bytes of pixels per shard that may cross the object store."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many actors there are, and the resources of each."""

    actors: Pool
    """Actors that infer and write."""
    decoders: Pool = field(default=Pool())
    """Actors of one core that only fetch and decode; none: the inferring actors do that too."""
    gpus_per_actor: int = 0
    memory: int | None = None
    """Bytes that each actor of one core asks for; None: it asks for none."""
    reason: str
    """One line for the log and the record."""

    @property
    def is_split(self) -> bool:
        """Whether decoding and inference are two stages."""
        return self.decoders.most > 0


def choose_layout(
    cpus: int,
    gpus: int,
    shards: int,
    *,
    most_cpus: int | None = None,
    most_gpus: int | None = None,
    shard_bytes: int = 0,
    limits: ActorLimits | None = None,
) -> Layout:
    """The layout for a cluster with so many CPUs and GPUs, or that can grow to so many; never wider than the shards.

    `most_gpus` is what `gpus_wanted` says; without it those that are there are used.
    If a shard's pixels (`shard_bytes`) are too large for the object store, films are decoded where inference runs.
    """
    limits = limits or ActorLimits()
    cores = max(cpus, most_cpus or 0)
    pool = size_pool(cpus, cores, shards, limits)
    wanted = gpus if most_gpus is None else most_gpus
    facts = f"{_grown(gpus, max(wanted, gpus), 'GPU')}, {_grown(cpus, cores, 'CPU')}"
    if wanted == 0:
        reason = f"{facts}: {_count(pool)} of one core that fetch, decode and infer in place"
        return Layout(actors=pool, memory=limits.memory, reason=reason)
    size = max(1, min(wanted, shards))
    inferring = Pool(least=max(1, min(gpus, size)), most=size)
    reason = f"{facts}: {_count(inferring)} of one GPU that infer"
    if shard_bytes > LARGEST_BLOCK:
        reason += f", and decode, because shards of {shard_bytes >> 20} MiB are too large to hand over"
        return Layout(actors=inferring, gpus_per_actor=1, reason=reason)
    reason += f", fed by {_count(pool)} of one core that fetch and decode"
    return Layout(actors=inferring, decoders=pool, gpus_per_actor=1, memory=limits.memory, reason=reason)


def gpus_wanted(now: int, most: int, limits: ActorLimits, evaluation: Mapping[str, Any]) -> int:
    """GPUs to ask for, of a cluster with so many now and at most, for a bundle with this evaluation.

    Those that are there are used. Nodes with more are only started if the model gains by them, or a person says so.
    """
    if limits.gpus is not None:
        return limits.gpus
    return max(now, most) if pays_on_gpu(evaluation) else now


def pays_on_gpu(evaluation: Mapping[str, Any]) -> bool:
    """Whether a bundle was compared on a GPU when it was promoted, and may run there by a faster engine than eager."""
    engines = evaluation.get("val", {}).get("engines", {})
    return any(name.endswith("-cuda") and agreement["allowed"] for name, agreement in engines.items())


def _grown(now: int, most: int, what: str) -> str:
    """`no GPU`, `8 CPUs`, `0 of 16 CPUs`."""
    if most == 0:
        return f"no {what}"
    return f"{now} {what}s" if now >= most else f"{now} of {most} {what}s"


def _count(pool: Pool) -> str:
    return "1 actor" if pool.most == 1 else f"{pool.most} actors"
