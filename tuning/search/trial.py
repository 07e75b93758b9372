"""One trial: one call of the training loop in this process, its epochs reported to Ray Tune.

A plain function and not a TorchTrainer: with reused actors a trial starts within 0.1 s of the one before it, where a
trainer takes 6 to 14 s to start its controller and worker. Trials of several workers use one:
`tuning/search/group_trial.py`.

After each epoch the trial puts its whole state into the study, while the next epoch trains. Whatever ends its process
(the driver is killed, its node is taken away), it continues from the last state that is there, and ends with the same
weights as if nothing had happened. A process that lives on after it was given up can only put states of the same
training.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from ray import tune
from torch import Tensor

from models.engines.latency import latency_ms
from models.errors import RayscanError
from models.spec import ModelSpec, Preprocessing, Scalar
from pipelines.errors import StorageError
from pipelines.storage import Store
from tuning.spaces.space import KIND, TrialPlan, to_plan
from tuning.study.failure import brief
from tuning.study.records import TrialKind
from tuning.study.trial_files import load_checkpoint, save_checkpoint, save_logits, save_weights
from tuning.training.checkpoint import Checkpoint
from tuning.training.films import TrainingFilms
from tuning.training.gpu import release, share_gpu
from tuning.training.loop import EpochReport, EpochState, fit
from tuning.training.objectives import AUC, LATENCY
from tuning.training.start import pretrained_start

METRIC = "auc"
"""Validation AUC of the trial's best epoch so far."""

OBJECTIVE = "objective"
"""What the search maximises: the best value of its objective that the trial had *so far*. Ray Tune
passes the last value a trial reported to Optuna; with the best so far, that is the value of the weights the trial
leaves. It is a maximum over epochs, so it flatters long trials a little."""

TIME = "epoch"
"""Epochs done; the scheduler's clock. Ray's own `training_iteration` starts anew when a trial is retried."""

EXCESS = "excess_ms"
"""By how much a film takes longer than the limit of the search; above 0 the network is not trained."""

TAKEN_UP = "taken_up"
"""In a trial's configuration, and user attribute of its Optuna trial: `trial_id`, `number` and `seed` of the trial of
an earlier run that it continues."""

_LET_GO_SECONDS: Final = "60"
"""How long Ray Tune gives a stopped trial's thread to end before the process takes the next trial. With its 2 s, a busy
machine is too slow, and the next trial is given up without a word."""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What all trials of a search share, besides the films."""

    study: Store
    preprocessing: Preprocessing
    """Of the dataset."""
    epochs: int
    """Of a trial that is not stopped."""
    seed: int
    threads: int
    device: str
    """`cpu` or `cuda`; Ray shows a trial only its own GPUs."""
    features: str = ""
    """Local folder, on each node, where the features of frozen backbones are kept."""
    gpu_share: float = 1.0
    """Of the GPU's memory, that a trial may take where several share it."""
    objective: str = AUC
    """What an epoch is judged by."""
    latency: bool = False
    """Whether the latency on this machine's engine is an objective, too."""
    most_ms: float | None = None
    """Milliseconds a film may take on it; slower architectures are not trained."""


def own_id(config: Mapping[str, Any], trial_id: str) -> str:
    """The study's name of a trial: Ray Tune's, or for one that is continued the one it had."""
    return str(config[TAKEN_UP]["trial_id"]) if TAKEN_UP in config else trial_id


def parameters_of(config: Mapping[str, Any]) -> dict[str, Scalar]:
    """A trial's parameters in its configuration."""
    return {name: value for name, value in config.items() if name not in {TAKEN_UP, KIND}}


def kind_of(config: Mapping[str, Any]) -> TrialKind:
    """What kind of trial has this configuration."""
    kind: TrialKind = config.get(KIND, "search")
    return kind


def plan_of(config: Mapping[str, Any], job: TrialJob) -> TrialPlan:
    """What a trial trains. Raises `InputError` for parameters that are out of range."""
    return to_plan(
        parameters_of(config),
        preprocessing=job.preprocessing,
        epochs=job.epochs,
        seed=config[TAKEN_UP]["seed"] if TAKEN_UP in config else job.seed,
        threads=job.threads,
        device=job.device,
        objective=job.objective,
    )


def start_of(plan: TrialPlan, films: TrainingFilms, job: TrialJob) -> dict[str, Tensor] | None:
    """The state a trial starts from; None where its weights are random."""
    if plan.weights is None:
        return None
    return pretrained_start(
        plan.spec,
        plan.weights,
        films,
        head=plan.head,
        seed=plan.training.seed,
        folder=job.features,
        threads=job.threads,
        device=torch.device(job.device),
    )


def measures(history: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    """METRIC, OBJECTIVE and TIME as a trial reports them after each epoch of its history."""
    for epoch in range(1, len(history) + 1):
        best = max(history[:epoch], key=_quality)
        yield {METRIC: best["val_auc"], OBJECTIVE: _quality(best)[0], TIME: epoch}


class Progress:
    """Keeps a trial's state on storage and reports each epoch."""

    def __init__(
        self,
        job: TrialJob,
        trial_id: str,
        earlier: Checkpoint | None,
        tell: Callable[[dict[str, Any]], None],
        *,
        writes: bool = True,
    ) -> None:
        self.job = job
        self.trial_id = trial_id
        self.tell = tell
        self.writes = writes
        self.began = time.perf_counter() - (earlier.facts["seconds"] if earlier else 0.0)
        self.latency: dict[str, float] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self.history: list[dict[str, Any]] = list(earlier.facts["history"]) if earlier else []

    def epoch(self, report: EpochReport, state: EpochState) -> bool:
        """Put weights and logits if they are the best yet, and begin to put the whole state; then report.

        The report may not return. Raises what putting the state of the epoch before raised.
        """
        earlier = [_quality(epoch) for epoch in self.history]
        self.history.append(asdict(report))
        if self.writes:
            if _quality(self.history[-1]) > max(earlier, default=(-math.inf, -math.inf)):
                save_weights(self.job.study, self.trial_id, state())
                save_logits(self.job.study, self.trial_id, state.best_logits)
            self.settle()
            checkpoint = state.checkpoint()
            self._written = self._writer.submit(save_checkpoint, self.job.study, self.trial_id, checkpoint)
        self.report(finished=len(self.history) >= self.job.epochs)
        return True

    def settle(self) -> None:
        """Wait until the last state is stored. Raises what putting it raised."""
        if self._written is not None:
            self._written.result()

    def report(self, *, finished: bool, error: str | None = None) -> None:
        """Report everything the study's row needs, so that the driver has to remember only the last report."""
        # Optuna ignores a trial whose value is not a number
        nothing: dict[str, float] = {METRIC: math.nan, OBJECTIVE: math.nan, TIME: 0}
        *_, reached = [nothing, *measures(self.history)]
        self.tell(
            {
                **reached,
                **self.latency,
                "history": json.dumps(self.history),
                "epoch_seconds": self.history[-1]["seconds"] if self.history else 0.0,
                "seconds": time.perf_counter() - self.began,
                "finished": finished,
                "error": error,
            }
        )

    def is_fast_enough(self, spec: ModelSpec, share: Callable[[float], float] = lambda own: own) -> bool:
        """Measure how long a film takes, if somebody wants to know; whether the network may be trained.

        `share` makes of several workers' figures one for all of them, by which they decide alike. A trial that is
        continued was fast enough when it began, whatever this machine says.
        """
        if self.job.latency or self.job.most_ms is not None:
            milliseconds = share(latency_ms(spec, device=self.job.device, threads=self.job.threads))
            self.latency = {LATENCY: milliseconds}
            if self.job.most_ms is not None:
                excess = milliseconds - self.job.most_ms
                self.latency[EXCESS] = min(excess, 0.0) if self.history else excess
        return self.latency.get(EXCESS, 0.0) <= 0


def _quality(report: Mapping[str, Any]) -> tuple[float, float]:
    value = report.get("objective")
    return report["val_auc"] if value is None else value, -report.get("val_loss", 0.0)


def run_trial(config: dict[str, Any], *, films: TrainingFilms, job: TrialJob) -> None:
    """Ray Tune's trainable: train what `config` says; the films are read-only views of Ray's object store.

    A fault of the parameters (training diverges or does not fit the GPU's memory, there is no such model) is reported,
    and this process takes the next trial. Anything else is raised: Ray Tune tries again in a new process, as the
    machine may be at fault.
    """
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", _LET_GO_SECONDS)
    trial_id = own_id(config, tune.get_context().get_trial_id())
    earlier = load_checkpoint(job.study, trial_id)
    progress = Progress(job, trial_id, earlier, tune.report)
    release(job.device)  # of what the trial before it in this process kept
    share_gpu(torch.device(job.device), job.gpu_share)
    try:
        plan = plan_of(config, job)
        if progress.is_fast_enough(plan.spec):
            start = start_of(plan, films, job) if earlier is None else None
            fit(
                plan.spec, films.train, films.val, plan.training, on_epoch=progress.epoch, weights=start, resume=earlier
            )
            progress.settle()
    except StorageError:
        raise
    except RayscanError as error:
        progress.report(finished=True, error=brief(error))
    else:
        progress.report(
            finished=True
        )  # a model without parameters to train ends before the last epoch, and is complete
