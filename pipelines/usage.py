"""What a run used of the cluster: counted from what each actor says about each shard, not from what was planned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stint:
    """The time an actor spent on one shard."""

    stage: int
    """Index of its pool."""
    node: str
    began: float
    """Seconds since 1970, by the clock of its node."""
    ended: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The most that was at work at a time, and the nodes that did any."""

    actors: int = 0
    cpus: int = 0
    gpus: int = 0
    nodes: int = 0


def usage(stints: Iterable[Stint], sizes: Sequence[tuple[int, int]]) -> Usage:
    """The usage of a run; `sizes` are the CPUs and GPUs of an actor of each pool.

    Each figure is its own maximum: the most actors may be at work at another time than the most GPUs.
    """
    moments, nodes = [], set()
    for stint in stints:
        nodes.add(stint.node)
        cpus, gpus = sizes[stint.stage]
        moments += [(stint.began, 1, cpus, gpus), (stint.ended, -1, -cpus, -gpus)]
    # Sorted so that at one moment endings come first: an actor's next shard may begin as its last one ends.
    now, most = (0, 0, 0), (0, 0, 0)
    for _, *change in sorted(moments):
        now = tuple(a + b for a, b in zip(now, change, strict=True))  # type: ignore[assignment]
        most = tuple(map(max, most, now))  # type: ignore[assignment]
    return Usage(actors=most[0], cpus=most[1], gpus=most[2], nodes=len(nodes))
