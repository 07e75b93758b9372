"""One trial: one call of the training loop in this process, its epochs reported to Ray Tune.

A plain function and not a TorchTrainer: with reused actors a trial starts within 0.1 s of the one before it, where a
trainer takes 6 to 14 s for its controller and worker. A trainer is for trials of several workers or GPUs.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from models.films import Films
from models.spec import Preprocessing, Scalar
from pipelines.storage import Store
from tuning.loop import EpochReport, StateDict, fit
from tuning.objectives import AUC, LATENCY, latency_ms
from tuning.space import to_plan
from tuning.start import pretrained_start
from tuning.study import save_weights

METRIC = "auc"
"""Validation AUC of the trial's best epoch so far."""

OBJECTIVE = "objective"
"""What the search maximises: the best value of its objective, by default the AUC, that the trial had *so far*. Ray Tune
tells Optuna the last value reported of a trial, and with a running best that is the value of the weights the trial
leaves behind. It is a maximum over epochs, so it flatters long trials a little."""

TIME = "epoch"
"""Epochs done; the scheduler's clock. Ray's own `training_iteration` starts anew when a trial is retried."""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What all trials of a search share, beside the films."""

    study: Store
    preprocessing: Preprocessing
    """Of the dataset."""
    epochs: int
    """Of a trial that is not stopped."""
    seed: int
    threads: int
    device: str
    """`cpu` or `cuda`; Ray shows a trial only its own GPUs."""
    dataset: str = ""
    """URI the films are of; for trials that start from pretrained weights."""
    features: str = ""
    """Local folder, on each node, where the features of frozen backbones are kept."""
    objective: str = AUC
    """What an epoch is judged by."""
    latency: bool = False
    """Whether the time a film takes on this machine's engine counts, too."""


class _Progress:
    """Keeps the best epoch's weights on storage and reports each epoch to Ray Tune."""

    def __init__(self, job: TrialJob, trial_id: str) -> None:
        self.job = job
        self.trial_id = trial_id
        self.began = time.perf_counter()
        self.best: EpochReport | None = None
        self.latency: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []

    def epoch(self, report: EpochReport, state: Callable[[], StateDict]) -> bool:
        """Put the weights if they are the best so far, then report. The report comes second: it may not return."""
        if self.best is None or report.quality > self.best.quality:
            self.best = report
            save_weights(self.job.study, self.trial_id, state())
        self.history.append(asdict(report))
        self.report(finished=len(self.history) >= self.job.epochs)
        return True

    def report(self, *, finished: bool) -> None:
        """Everything the study's row needs, so that the driver need remember nothing but the last report."""
        assert self.best is not None  # an epoch has ended
        tune.report(
            {
                METRIC: self.best.val_auc,
                OBJECTIVE: self.best.quality[0],
                **self.latency,
                TIME: len(self.history),
                "history": json.dumps(self.history),
                "seconds": time.perf_counter() - self.began,
                "finished": finished,
            }
        )


def run_trial(config: dict[str, Scalar], *, train: Films, val: Films, job: TrialJob) -> None:
    """Ray Tune's trainable: train what `config` says; the films are read-only views of Ray's object store."""
    plan = to_plan(
        config,
        preprocessing=job.preprocessing,
        epochs=job.epochs,
        seed=job.seed,
        threads=job.threads,
        device=job.device,
        objective=job.objective,
    )
    progress = _Progress(job, tune.get_context().get_trial_id())
    if job.latency:
        progress.latency = {LATENCY: latency_ms(plan.spec, device=job.device, threads=job.threads)}
    start = None
    if plan.weights is not None:
        start = pretrained_start(
            plan.spec,
            plan.weights,
            head=plan.head,
            seed=job.seed,
            dataset=job.dataset,
            films=train,
            val=val,
            folder=job.features,
            threads=job.threads,
        )
    fit(plan.spec, train, val, plan.training, on_epoch=progress.epoch, weights=start)
    progress.report(finished=True)  # a model without gradient ends before the last epoch, and is complete all the same
