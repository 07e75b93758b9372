"""One trial: one call of the training loop in this process, its epochs reported to Ray Tune.

A plain function and not a TorchTrainer: with reused actors a trial starts within 0.1 s of the one before it, where a
trainer takes 6 to 14 s for its controller and worker. A trainer is for trials of several workers or GPUs.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from models.films import Films
from models.spec import Preprocessing, Scalar
from pipelines.storage import Store
from tuning.loop import EpochReport, EpochState, fit
from tuning.space import to_spec_and_settings
from tuning.study import save_logits, save_weights

METRIC = "auc"
"""What trials report and the search maximises: the best validation AUC of the trial *so far*. Ray Tune tells Optuna the
last value reported of a trial, and with a running best that is the value of the weights the trial leaves behind. It is
a maximum over epochs, so it flatters long trials a little."""

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


class _Progress:
    """Keeps the best epoch's weights and validation logits on storage and reports each epoch to Ray Tune."""

    def __init__(self, job: TrialJob, trial_id: str) -> None:
        self.job = job
        self.trial_id = trial_id
        self.began = time.perf_counter()
        self.best = (-math.inf, -math.inf)
        self.history: list[dict[str, Any]] = []

    def epoch(self, report: EpochReport, state: EpochState) -> bool:
        """Put weights and logits if they are the best so far; then report, which may not return."""
        quality = (report.val_auc, -report.val_loss)
        if quality > self.best:
            self.best = quality
            save_weights(self.job.study, self.trial_id, state())
            save_logits(self.job.study, self.trial_id, state.best_logits)
        self.history.append(asdict(report))
        self.report(finished=len(self.history) >= self.job.epochs)
        return True

    def report(self, *, finished: bool) -> None:
        """Everything the study's row needs, so that the driver need remember nothing but the last report."""
        tune.report(
            {
                METRIC: self.best[0],
                TIME: len(self.history),
                "history": json.dumps(self.history),
                "seconds": time.perf_counter() - self.began,
                "finished": finished,
            }
        )


def run_trial(config: dict[str, Scalar], *, train: Films, val: Films, job: TrialJob) -> None:
    """Ray Tune's trainable: train what `config` says; the films are read-only views of Ray's object store."""
    spec, settings = to_spec_and_settings(
        config,
        preprocessing=job.preprocessing,
        epochs=job.epochs,
        seed=job.seed,
        threads=job.threads,
        device=job.device,
    )
    progress = _Progress(job, tune.get_context().get_trial_id())
    fit(spec, train, val, settings, on_epoch=progress.epoch)
    progress.report(finished=True)  # a model without gradient ends before the last epoch, and is complete all the same
