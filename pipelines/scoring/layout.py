"""From the facts of a cluster to the shape of the scoring job.

Without GPUs one actor a core fetches (threads), decodes and infers in one place, so no pixels cross the object store.
With GPUs one actor a core, on whatever node it stands, fetches and decodes to uint8, and one actor a GPU infers and
writes; Ray Data holds the decoders back when the GPUs cannot follow. GPU actors ask for no CPU: decoders that fill a
GPU's node before its actor starts would keep it out for ever.
"""

from dataclasses import dataclass
from typing import Final

THREADS: Final = 2
"""Fetching and decoding threads of an actor to begin with; `films.py` adds to them where they wait."""
LARGEST_BLOCK: Final = 256 << 20
"""Bytes of pixels of one shard that may cross the object store."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many actors, and what each holds."""

    cpus: int
    """Of the cluster."""
    actors: int
    """That infer and write."""
    decoders: int
    """Actors of one core that only fetch and decode; 0: those that infer do that, too."""
    gpus_per_actor: int
    most_actors: int | None = None
    """Up to so many of one core if the cluster grows."""
    reason: str
    """One line for the person who watches."""

    @property
    def is_split(self) -> bool:
        """Whether decoding and inference are two stages."""
        return self.decoders > 0


def choose_layout(cpus: int, gpus: int, shards: int, *, shard_bytes: int = 0, most_actors: int | None = None) -> Layout:
    """The layout for a cluster with this many CPUs and GPUs, never wider than there are shards.

    `shard_bytes` of pixels too large for the object store are decoded where they are inferred, GPU or not.
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
