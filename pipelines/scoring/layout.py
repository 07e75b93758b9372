"""From the facts of a cluster to the shape of the scoring job.

One fused actor fetches (threads), decodes and infers in one place, so pixels never cross the object store: one actor a
core on CPU machines, one a GPU where there are GPUs, with that GPU's share of the cores decoding for it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many scoring actors, and what each holds."""

    actors: int
    cpus_per_actor: int
    gpus_per_actor: int
    threads: int
    """Threads of an actor that fetch and decode ahead of the inference."""
    batch: int
    """Films per inference."""
    reason: str
    """One line for the person who watches."""


def choose_layout(cpus: int, gpus: int, shards: int) -> Layout:
    """The layout for a cluster with this many CPUs and GPUs, never wider than there are shards."""
    if gpus >= 1:
        actors = max(1, min(gpus, shards))
        cores = max(1, cpus // gpus)
        return Layout(
            actors=actors,
            cpus_per_actor=cores,
            gpus_per_actor=1,
            threads=2 * cores,
            batch=64,
            reason=f"{gpus} GPUs, {cpus} CPUs: {actors} actors of one GPU with {cores} cores decoding for each",
        )
    actors = max(1, min(cpus, shards))
    return Layout(
        actors=actors,
        cpus_per_actor=1,
        gpus_per_actor=0,
        threads=8,
        batch=8,
        reason=f"no GPU, {cpus} CPUs: {actors} actors of one core that fetch, decode and infer in place",
    )
