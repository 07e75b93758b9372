"""One trial of several workers, or of a group of GPUs: a TorchTrainer inside the trial, around the one training loop.

Parameters, metrics, weights, checkpoints and rows are those of `tuning/search/trial.py`; only the first worker writes.
The trainer keeps no checkpoints of its own: a group that dies is started anew by Ray Tune, from the study's checkpoint.

A group takes 6 to 14 s to start, so it is for trials of minutes. Ray Train frees the CPUs of a stopped group through
the dashboard's state API; with the dashboard off, the next trial waits for them for ever.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from models.errors import RayscanError
from pipelines.errors import StorageError
from tuning.search.trial import Progress, TrialJob, own_id, plan_of, start_of
from tuning.study.failure import brief
from tuning.study.trial_files import load_checkpoint
from tuning.training.films import TrainingFilms
from tuning.training.loop import fit
from tuning.training.workers import Workers

DRIVER: Final = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
"""Where the trial itself runs, which only waits for its workers: on the head node, which is no spot instance. The
trainer's controller runs beside it."""

_ENVIRONMENT: Final = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports reach the search this late, too; by default 2 s
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # /api/train/v2/runs/v1 lists the trial
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The workers that train one trial together."""

    workers: int
    cpus: float
    """Of each worker."""
    gpus: float
    films: Any
    """Reference to the training and validation films in Ray's object store, where all workers of a node read them."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What each worker gets."""

    config: dict[str, Any]
    trial_id: str
    job: TrialJob
    films: Any


def run_group_trial(config: dict[str, Any], *, group: Group, job: TrialJob) -> None:
    """Ray Tune's trainable: train what `config` says with `group.workers` workers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray_id = tune.get_context().get_trial_id()
    task = _Task(config=config, trial_id=own_id(config, ray_id), job=job, films=group.films)
    resources = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    ray.train.torch.TorchTrainer(
        _train_together,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=bool(group.gpus), resources_per_worker=resources
        ),
        # the trainer's notes, of which nothing is needed, go with those of the search
        run_config=ray.train.RunConfig(
            name=ray_id,
            storage_path=tune.get_context().get_trial_dir(),
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item] # as Ray's guide has it
        ),
    ).fit()


def _of_the_first(workers: Workers, figure: float) -> float:
    """The first worker's figure, on all workers."""
    shared = torch.tensor([figure], dtype=torch.float64).to(ray.train.torch.get_device())
    workers.share_first([shared])
    return float(shared)


def _train_together(config: dict[str, Any]) -> None:
    """What each worker runs. All compute the same figures, so all fail or none; each report waits for all."""
    task: _Task = config["task"]
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), count=context.get_world_size())
    films: TrainingFilms = ray.get(task.films)
    earlier = load_checkpoint(task.job.study, task.trial_id)
    progress = Progress(task.job, task.trial_id, earlier, ray.train.report, writes=workers.rank == 0)
    try:
        plan = plan_of(task.config, task.job)
        settings = replace(plan.training, device=str(ray.train.torch.get_device()))
        if not progress.is_fast_enough(plan.spec, partial(_of_the_first, workers)):
            progress.report(finished=True)
            return
        start = start_of(plan, films, task.job) if earlier is None else None
        fit(
            plan.spec,
            films.train,
            films.val,
            settings,
            on_epoch=progress.epoch,
            weights=start,
            resume=earlier,
            workers=workers,
        )
        progress.settle()
    except StorageError:
        raise
    except RayscanError as error:
        progress.report(finished=True, error=brief(error))
    else:
        progress.report(finished=True)
