"""One training loop: for `rayscan train`, for the trials of a search and for Ray Train workers. Knows no ray.

It keeps the epoch of the best validation AUC, or the best by another objective (`tuning/training/objectives.py`), or
the last. What happens within an epoch is in `tuning/training/learner.py`.

All randomness comes from the seed: the order of films and their mixing from the number of the epoch and step, and
augmentation and dropout from generators whose state a `Checkpoint` keeps. When several workers train together, that is
the first one's state; the others seed theirs anew for each epoch. On a GPU noise and dropout draw from its own
generators, so they are others than on a CPU; all else that augmentation draws is the same.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.engines.allocator import keep_memory
from models.engines.machine import choose_device
from models.errors import InputError
from models.films import Films
from models.spec import ModelSpec
from models.statistics.calibration import disease_log_odds
from models.statistics.metrics import auc
from tuning.training.checkpoint import Checkpoint, under
from tuning.training.gpu import out_of_memory_is_told
from tuning.training.judged_films import JudgedFilms, judged_films
from tuning.training.learner import Learner, StateDict
from tuning.training.losses import cross_entropy
from tuning.training.objectives import AUC, parse_objective
from tuning.training.settings import ClassWeighting, TrainSettings
from tuning.training.workers import ALONE, Workers

__all__ = ["ClassWeighting", "EpochReport", "EpochState", "Fitted", "OnEpoch", "StateDict", "TrainSettings", "fit"]

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """The result of one epoch."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean of the minimised loss."""
    val_auc: float
    val_loss: float
    """Cross entropy, neither weighted nor smoothed, before calibration."""
    seconds: float
    objective: float | None = None
    """Value of the training's objective; None if that is `val_auc`."""

    @property
    def quality(self) -> tuple[float, float]:
        """Highest for the best epoch; of equals, the one with the lower loss is better."""
        return self.val_auc if self.objective is None else self.objective, -self.val_loss


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model: the state of the epoch that `settings.keep` says."""

    spec: ModelSpec
    settings: TrainSettings
    state_dict: StateDict
    val_logits: npt.NDArray[np.float32]
    """Uncalibrated [N, C], in the order of the validation films."""
    history: tuple[EpochReport, ...]
    best: EpochReport
    seconds: float


class EpochState:
    """The state of a training after an epoch. Nothing is copied before it is asked for, so ask within the callback."""

    def __init__(self, training: "_Training") -> None:
        self._training = training

    def __call__(self) -> StateDict:
        """The weights that were evaluated, on the CPU."""
        return self._training.learner.state_dict()

    @property
    def best_logits(self) -> npt.NDArray[np.float32]:
        """Uncalibrated logits [M, C] at the best epoch so far: of the validation films, then of their copies.

        Copies only where the objective looks at them (`tuning/training/judged_films.py`).
        """
        return self._training.best_logits

    def checkpoint(self) -> Checkpoint:
        """Everything `fit(..., resume=...)` needs to go on from here."""
        return self._training.checkpoint()


OnEpoch = Callable[[EpochReport, EpochState], bool]
"""Called after each epoch with its report and the state of the training; returning False stops it."""


def fit(
    spec: ModelSpec,
    train: Films,
    val: Films,
    settings: TrainSettings,
    on_epoch: OnEpoch | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    resume: Checkpoint | None = None,
    workers: Workers = ALONE,
) -> Fitted:
    """Train a model; on a CPU the same arguments give the same weights, on the same machine and number of threads.

    On a GPU they need not: cuDNN is told to be deterministic, but other operations add in the order in which their
    threads come. There the same arguments give the same films, in the same order, with the same changes.

    Labels are class indices; with several diseases, the validation AUC is that of any disease against none.
    `weights` is a state of the same architecture to start from; what it lacks of the classifier starts at random.
    `resume` goes on after the checkpoint's epoch, with the films and settings it was made with (device and threads may
    differ); `weights` is then ignored.
    `workers` says which of several processes that train together this is (see `tuning/training/workers.py`); all others
    must get the same arguments. Each calls its own `on_epoch`, and all of these must return the same.

    Raises `InputError` for films that cannot be trained on, for weights or a checkpoint that do not fit, and for
    settings under which no layer learns; `RayscanError` when training diverges, or does not fit a GPU's memory.
    """
    _check(spec, train, val)
    if min(len(train), settings.batch_size * settings.accumulate) < 2 * workers.count:
        raise InputError(
            f"each of {workers.count} workers needs 2 films of a step; raise batch_size or have fewer workers"
        )
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_memory()
    # of a group, the others would wait for a worker that gave up by itself
    told = out_of_memory_is_told(spec.name, settings.batch_size) if workers.count == 1 else contextlib.nullcontext()
    with told, _deterministic(settings, device):
        judged = judged_films(val, copies=parse_objective(settings.objective).copies)
        learner = Learner(
            spec, settings, train, judged.pixels, device=device, weights=None if resume else weights, workers=workers
        )
        training = _Training(learner, train, val, judged)
        if resume is not None:
            training.restore(resume)
        return training.run(on_epoch)


class _Training:
    """One training: its epochs, their history, and the best of them."""

    def __init__(self, learner: Learner, train: Films, val: Films, judged: JudgedFilms) -> None:
        self.learner, self.spec, self.settings = learner, learner.spec, learner.settings
        self.films, self.val_labels, self.judged = _digest(train, val), val.labels, judged
        self.judge = None if self.settings.objective == AUC else parse_objective(self.settings.objective).judge
        self.history: list[EpochReport] = []
        self.best_state: StateDict = {}
        self.best_logits = np.empty(0, dtype=np.float32)
        self.earlier = 0.0
        self.begun = time.perf_counter()

    @property
    def best(self) -> EpochReport | None:
        """The epoch to keep: the best so far, the first of equals, or the last; None before the first."""
        if self.settings.keep == "last":
            return self.history[-1] if self.history else None
        return self._highest

    @property
    def _highest(self) -> EpochReport | None:
        return max(self.history, key=lambda report: report.quality, default=None)

    @property
    def seconds(self) -> float:
        """Time spent so far, including that before an interruption."""
        return self.earlier + time.perf_counter() - self.begun

    def run(self, on_epoch: OnEpoch | None) -> Fitted:
        """Train for all epochs that remain."""
        self.learner.run_stem()
        epochs = self.settings.epochs if self.learner.learns else 1
        for epoch in range(len(self.history) + 1, epochs + 1):
            if self._is_stale():
                break
            report = self._epoch(epoch)
            log.info(
                "%s epoch %d/%d: train loss %.4f, val AUC %.4f, val loss %.4f, %.1f s",
                *(self.spec.name, epoch, epochs, report.train_loss, report.val_auc, report.val_loss, report.seconds),
            )
            if on_epoch is not None and not on_epoch(report, EpochState(self)):
                break
        assert self.best is not None
        return Fitted(
            spec=self.spec,
            settings=self.settings,
            state_dict=self.best_state,
            val_logits=self.best_logits[: len(self.val_labels)],
            history=tuple(self.history),
            best=self.best,
            seconds=self.seconds,
        )

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        tensors = {
            **self.learner.tensors(),
            **dict(under("best", self.best_state)),
            "best_logits": torch.tensor(self.best_logits),
        }
        facts: dict[str, Any] = {
            **self._identity(),
            **self.learner.facts(),
            "epoch": len(self.history),
            "history": [asdict(report) for report in self.history],
            "seconds": self.seconds,
        }
        return Checkpoint(tensors=tensors, facts=facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises `InputError` if it is of another training."""
        checkpoint.require(self._identity())
        self.learner.restore(checkpoint)
        self.best_state = checkpoint.part("best")
        self.best_logits = checkpoint.tensors["best_logits"].numpy()
        self.history = [EpochReport(**report) for report in checkpoint.facts["history"]]
        self.earlier = float(checkpoint.facts["seconds"])

    def _identity(self) -> dict[str, Any]:
        """What two trainings must share for one to go on from the other's checkpoint."""
        settings = asdict(self.settings)
        del settings["device"], settings["threads"]
        return {"spec": self.spec.to_json(), "settings": settings, "films": self.films}

    def _is_stale(self) -> bool:
        """Whether so many epochs went by without a better one that training stops."""
        highest = self._highest
        if highest is None or not self.settings.patience:
            return False
        return len(self.history) - highest.epoch >= self.settings.patience

    def _epoch(self, epoch: int) -> EpochReport:
        """Train for one epoch, evaluate, and keep the weights if they are the best so far."""
        begun = time.perf_counter()
        train_loss = self.learner.train_epoch(epoch)
        of_all = self.learner.evaluate()
        diseased, odds = (self.judged.labels > 0).astype(np.int64), disease_log_odds(of_all)
        own = len(self.val_labels)
        val_logits = torch.from_numpy(of_all[:own])
        report = EpochReport(
            epoch=epoch,
            train_loss=train_loss,
            val_auc=auc(diseased[:own], odds[:own]),
            val_loss=float(cross_entropy(val_logits, torch.tensor(self.val_labels))),
            seconds=time.perf_counter() - begun,
            objective=None if self.judge is None else self.judge(diseased, odds, self.judged.copies),
        )
        self.history.append(report)
        if self.best is report:
            self.best_state, self.best_logits = self.learner.state_dict(), of_all
        return report


def _digest(train: Films, val: Films) -> str:
    """Stands for the films, their order and their labels."""
    digest = hashlib.blake2b(digest_size=16)
    for films in (train, val):
        digest.update("\n".join(films.scan_ids.tolist()).encode())
        digest.update(np.ascontiguousarray(films.labels).tobytes())
    return digest.hexdigest()


def _check(spec: ModelSpec, train: Films, val: Films) -> None:
    if len(train) < 2:
        raise InputError(f"training needs at least 2 films, there are {len(train)}; prepare a larger dataset")
    for split, films in (("training", train), ("validation", val)):
        missing = [name for index, name in enumerate(spec.classes) if not (films.labels == index).any()]
        if missing:
            raise InputError(f"there are no {split} films of class {', '.join(missing)}; prepare a larger dataset")
        if films.labels.min() < 0 or films.labels.max() >= len(spec.classes):
            raise InputError(f"{split} films have labels beyond the classes {', '.join(spec.classes)}")


@contextlib.contextmanager
def _deterministic(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Seed and threads for this training only; the caller's are restored afterwards."""
    threads = torch.get_num_threads()
    forked = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=forked),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(settings.seed)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
