"""How many actors a run asks for: what a person allows, and what follows from the work and the cluster.

A module of its own because it imports nothing heavy: settings hold an `ActorLimits`, and wrong ones are told at once.
"""

from dataclasses import dataclass
from typing import Final

from models.errors import InputError

LEAST_MEMORY: Final = 64 << 20
"""Bytes; an actor that asks for less has forgotten the unit."""


@dataclass(frozen=True, kw_only=True)
class ActorLimits:
    """What a person wants of a run's actors; None: as the work and the cluster have it."""

    min_actors: int | None = None
    """Actors of one core that are kept even when idle (1)."""
    max_actors: int | None = None
    """Most actors of one core (one for each core the cluster can have)."""
    gpus: int | None = None
    """GPUs to ask for; 0: none (those there are, and those there may be if the model gains by them)."""
    memory: int | None = None
    """Bytes of memory that each actor of one core asks Ray for (none: Ray places by cores alone)."""

    def __post_init__(self) -> None:
        for name, low in (("min_actors", 1), ("max_actors", 1), ("gpus", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value} is out of range; choose {low} or more")
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise InputError(f"min_actors={self.min_actors} is more than max_actors={self.max_actors}")
        if self.memory is not None and self.memory < LEAST_MEMORY:
            raise InputError(f"memory={self.memory} bytes is too little for an actor; write 2GiB or 512MiB")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A number of actors alike, which may change during the run."""

    least: int = 0
    """Actors that the pool never goes below; 0: there is no such pool."""
    most: int = 0
    """Actors asked for at the start, and the most there are at a time."""


def size_pool(now: int, most: int, shards: int, limits: ActorLimits) -> Pool:
    """A pool of actors of one core: one for each core the cluster can have, never more than there are shards."""
    wanted = most if limits.max_actors is None else limits.max_actors
    size = max(1, min(wanted or now, shards))
    return Pool(least=min(limits.min_actors or 1, size), most=size)


def check_memory(memory: int | None, largest: int | None) -> None:
    """Raise `InputError` if no node of the cluster, now or later, has this much memory for one actor."""
    if memory and largest is not None and memory > largest:
        raise InputError(
            f"--memory {memory / 2**30:.3g}GiB: the largest node of this cluster lends {largest / 2**30:.3g} GiB to"
            " actors; ask for less"
        )
