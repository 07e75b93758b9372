"""Chooses the layout of the scoring job from the resources of the cluster.

Without GPUs one actor per core fetches (in threads), decodes and infers, so no pixels cross the object store. With GPUs
one actor per core, on any node, fetches and decodes to uint8, and one actor per GPU infers and writes; Ray Data slows
the decoders down when the GPUs cannot keep up. GPU actors request no CPU: otherwise decoders that fill a GPU's node
before its actor starts would block it for ever.
"""

from dataclasses import dataclass
from typing import Final

THREADS: Final = 2
"""Threads with which an actor starts to fetch and decode; `films.py` adds more if they wait."""
LARGEST_BLOCK: Final = 256 << 20
"""Most bytes of pixels per shard that may cross the object store."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many actors there are, and the resources of each."""

    cpus: int
    """CPUs of the cluster."""
    actors: int
    """Actors that infer and write."""
    decoders: int
    """Actors of one core that only fetch and decode; 0: the inferring actors do that too."""
    gpus_per_actor: int
    most_actors: int | None = None
    """Most actors of one core if the cluster grows."""
    reason: str
    """One line for the log and the record."""

    @property
    def is_split(self) -> bool:
        """Whether decoding and inference are two stages."""
        return self.decoders > 0


def choose_layout(cpus: int, gpus: int, shards: int, *, shard_bytes: int = 0, most_actors: int | None = None) -> Layout:
    """The layout for a cluster with this many CPUs and GPUs, never wider than there are shards.

    If a shard's pixels (`shard_bytes`) are too large for the object store, films are decoded where inference runs.
    """
    grow = None if most_actors is None else min(most_actors, shards)
    growing = f", up to {grow} if the cluster grows" if grow else ""
    if gpus == 0:
        actors = max(1, min(cpus, shards))
        reason = f"no GPU, {cpus} CPUs: {actors} actors of one core that fetch, decode and infer in place{growing}"
        return Layout(cpus=cpus, actors=actors, decoders=0, gpus_per_actor=0, most_actors=grow, reason=reason)
    actors = max(1, min(gpus, shards))
    facts = f"{gpus} GPUs, {cpus} CPUs: {actors} actors of one GPU that infer"
    if shard_bytes > LARGEST_BLOCK:
        reason = f"{facts}, and decode, because shards of {shard_bytes >> 20} MiB are too large to hand over"
        return Layout(cpus=cpus, actors=actors, decoders=0, gpus_per_actor=1, reason=reason)
    decoders = max(1, min(cpus, shards))
    reason = f"{facts}, fed by {decoders} actors of one core that fetch and decode{growing}"
    return Layout(cpus=cpus, actors=actors, decoders=decoders, gpus_per_actor=1, most_actors=grow, reason=reason)
