"""Runs the folds of `tuning/study/confirm.py` as Ray tasks, each with the resources of a trial's worker.

Plain tasks, not trials of Ray Tune: there is nothing to suggest, to stop or to resume.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import torch

from models.engines.allocator import keep_memory
from tuning.study.confirm import Dealt, FoldJob, HeldOut, Run, held_out


def as_ray_tasks(resources: Mapping[str, float], *, at_most: int) -> Run:
    """Run jobs as tasks with these resources each, such as `{"CPU": 1.0, "GPU": 0.5}`, so many at a time.

    Ray must be running.
    """
    return partial(_run, cpus=resources["CPU"], gpus=resources.get("GPU", 0.0), at_most=at_most)


def _run(jobs: Sequence[FoldJob], dealt: Dealt, *, cpus: float, gpus: float, at_most: int) -> Iterator[HeldOut]:
    """The jobs' results, in the order in which they end."""
    films = ray.put(dealt)
    task = _held_out.options(num_cpus=cpus, num_gpus=gpus)
    device, threads = "cuda" if gpus else "cpu", max(1, int(cpus))
    left = list(jobs)[::-1]
    running: list[Any] = []
    try:
        while left or running:
            while left and len(running) < at_most:
                running.append(task.remote(_placed(left.pop(), device, threads), films))
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _placed(job: FoldJob, device: str, threads: int) -> FoldJob:
    training = replace(job.recipe.training, device=device, threads=threads)
    return replace(job, recipe=replace(job.recipe, training=training))


@ray.remote
def _held_out(job: FoldJob, dealt: Dealt) -> HeldOut:
    keep_memory()
    # for what is not training: features of a frozen backbone, and scoring
    torch.set_num_threads(job.recipe.training.threads or 1)
    return held_out(job, dealt)
