"""One training loop: for `rayscan train`, for the trials of a search and for Ray Train workers. Knows no ray.

The validation films go through the very module that scores later, in float32, so that the temperature and thresholds
fitted on their logits hold for the engine. The epoch of the best validation AUC is the one that is kept, or of the best
of another objective (`tuning/training/objectives.py`).

Films larger than the model's input are shrunk once, before the first epoch; `models.networks.preprocess.resize` gives
whole grey levels, so this equals, bit for bit, the shrinking inside the graph that scoring does.

Where the first layers never learn and no film is changed, those layers run once over the films
(`tuning/training/stem.py`).

All that is random comes from the seed: the order of films and their mixing from the number of the epoch and step, and
augmentation and dropout from generators whose state a `Checkpoint` keeps. Where several workers train together, that is
the first one's state; the others seed theirs anew for each epoch.
"""

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.engines.allocator import keep_memory
from models.engines.machine import choose_device
from models.errors import InputError, RayscanError
from models.films import Films
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess, resize_films
from models.networks.zoo import Majority, build, layer_groups
from models.spec import ModelSpec
from models.statistics.metrics import auc
from tuning.training.augment.batch import Augment
from tuning.training.checkpoint import Checkpoint, optimiser_state, restore_network, restore_optimiser, under
from tuning.training.losses import class_weights, cross_entropy, focal, importance
from tuning.training.mix import mix
from tuning.training.objectives import AUC, parse_objective
from tuning.training.optimiser import Average, freeze, load_weights, make_optimiser, set_rate, train_mode
from tuning.training.schedule import Indices, films_of_epoch, mixing_generator, rate, steps_of_epoch
from tuning.training.settings import ClassWeighting, TrainSettings
from tuning.training.stem import Stem, keeps_still, make_stem
from tuning.training.workers import ALONE, Workers

__all__ = ["ClassWeighting", "EpochReport", "EpochState", "Fitted", "OnEpoch", "StateDict", "TrainSettings", "fit"]

log = logging.getLogger("rayscan")

StateDict = dict[str, Tensor]

EVALUATION_BATCH: Final = 64
LOSSES: Final = {"cross_entropy": cross_entropy, "focal": focal}


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What one epoch came to."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean of what was minimised."""
    val_auc: float
    val_loss: float
    """Cross entropy, neither weighted nor smoothed, before calibration."""
    seconds: float
    objective: float | None = None
    """Value of the training's objective, where that is another than `val_auc`."""

    @property
    def quality(self) -> tuple[float, float]:
        """What the best epoch has the most of; of equals, the loss decides."""
        return self.val_auc if self.objective is None else self.objective, -self.val_loss


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model: the state of its best epoch."""

    spec: ModelSpec
    settings: TrainSettings
    state_dict: StateDict
    val_logits: npt.NDArray[np.float32]
    """Uncalibrated [N, C], in the order of the validation films."""
    history: tuple[EpochReport, ...]
    best: EpochReport
    seconds: float


class EpochState:
    """The state of a training after an epoch; only what is asked for is copied, and as it is when it is asked for."""

    def __init__(self, training: "_Training") -> None:
        self._training = training

    def __call__(self) -> StateDict:
        """The weights that were evaluated, on the CPU."""
        return self._training.state_dict()

    @property
    def best_logits(self) -> npt.NDArray[np.float32]:
        """Uncalibrated logits [N, C] of the validation films by the best epoch so far."""
        return self._training.best_logits

    def checkpoint(self) -> Checkpoint:
        """All that `fit(..., resume=...)` needs to go on from here."""
        return self._training.checkpoint()


OnEpoch = Callable[[EpochReport, EpochState], bool]
"""Called after each epoch with its report and a getter of the weights as they are now; False stops training."""


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
    """Train a model; the same arguments give the same weights on the same machine and number of threads.

    Labels are class indices; where there are several diseases, the validation AUC is that of any disease against none.
    `weights` is a state of the same architecture to start from; what it lacks of the classifier starts at random.
    `resume` goes on after the checkpoint's epoch, with the films and settings it was made with (device and threads may
    differ); `weights` is then not looked at.
    `workers` says which of several processes this is that train together (see `tuning/training/workers.py`); all give
    the same arguments otherwise, and each calls its `on_epoch`, which must answer alike.

    Raises `InputError` for films that cannot be trained on, for weights or a checkpoint that do not fit, and for
    settings under which no layer learns; `RayscanError` when training diverges.
    """
    _check(spec, train, val)
    if min(len(train), settings.batch_size * settings.accumulate) < 2 * workers.count:
        raise InputError(
            f"each of {workers.count} workers needs 2 films of a step; raise batch_size or have fewer workers"
        )
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_memory()
    with _deterministic(settings, device):
        training = _Training(spec, train, val, settings, device, None if resume else weights, workers)
        if resume is not None:
            training.restore(resume)
        return training.run(on_epoch)


class _Training:
    """The state of one training."""

    def __init__(
        self,
        spec: ModelSpec,
        train: Films,
        val: Films,
        settings: TrainSettings,
        device: torch.device,
        weights: Mapping[str, Tensor] | None,
        workers: Workers,
    ) -> None:
        self.spec, self.settings, self.device, self.workers = spec, settings, device, workers
        self.train, self.train_labels = resize_films(train.pixels, spec.preprocessing.size), train.labels
        self.val, self.val_labels = resize_films(val.pixels, spec.preprocessing.size), val.labels
        self.films = _digest(train, val)
        self.network = workers.prepare(build(spec), device).to(device).to(memory_format=torch.channels_last)
        self.classifier = ScanClassifier(Preprocess(spec.preprocessing), self.network).to(device)
        self.learns = any(parameter.requires_grad for parameter in self.network.parameters())
        self.groups: Sequence[Sequence[nn.Parameter]] = layer_groups(self.network) if self.learns else []
        if weights is not None:
            load_weights(self.network, self.groups[-1] if self.groups else [], weights)
        labels = torch.tensor(train.labels)
        if isinstance(self.network, Majority):
            self.network.learn(labels.to(device))
        self.average = Average(self.network, settings.ema) if settings.ema and self.learns else None
        self.optimiser = make_optimiser(self.groups, settings) if self.learns else None
        self.augment = Augment(settings.augmentation)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        balanced = settings.class_weighting == "balanced"
        self.weights = class_weights(labels, len(spec.classes)).to(device) if balanced else None
        self.judge = None if settings.objective == AUC else parse_objective(settings.objective).judge
        self.stem: Stem | None = None
        self.history: list[EpochReport] = []
        self.best_state: StateDict = {}
        self.best_logits = np.empty(0, dtype=np.float32)
        self.earlier = 0.0
        self.begun = time.perf_counter()

    @property
    def best(self) -> EpochReport | None:
        """The first of the epochs that are as good as any; None before the first."""
        return max(self.history, key=lambda report: report.quality, default=None)

    @property
    def seconds(self) -> float:
        """Since the beginning, those before an interruption included."""
        return self.earlier + time.perf_counter() - self.begun

    @property
    def judged(self) -> ScanClassifier:
        """What is evaluated and kept: with the averaged weights, where there are such."""
        if self.average is None:
            return self.classifier
        return ScanClassifier(self.classifier.preprocess, self.average.network).to(self.device)

    def run(self, on_epoch: OnEpoch | None) -> Fitted:
        self._run_stem()
        epochs = self.settings.epochs if self.learns else 1
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
            val_logits=self.best_logits,
            history=tuple(self.history),
            best=self.best,
            seconds=self.seconds,
        )

    def _run_stem(self) -> None:
        """Let the layers that never learn see all films, once, where that is all they would ever say."""
        if not (self.learns and keeps_still(self.settings)):
            return
        freeze(self.groups, self.settings, 1)
        self.stem = make_stem(
            self.network,
            self.classifier.preprocess,
            self.train,
            self.val,
            device=self.device,
            precision=partial(_precision, self.device),
        )

    def state_dict(self) -> StateDict:
        """A copy of the evaluated weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.judged.network.state_dict().items()}

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        tensors = {
            **dict(under("network", self.network.state_dict())),
            **dict(under("best", self.best_state)),
            **dict(under("generator", self._generators())),
            "best_logits": torch.tensor(self.best_logits),
        }
        facts: dict[str, Any] = {
            **self._identity(),
            "epoch": len(self.history),
            "device": self.device.type,
            "history": [asdict(report) for report in self.history],
            "seconds": self.seconds,
        }
        if self.optimiser is not None:
            tensors |= dict(under("optimiser", optimiser_state(self.optimiser)))
        if self.average is not None:
            tensors |= dict(under("average", self.average.network.state_dict()))
            facts["averaged_steps"] = self.average.updates
        return Checkpoint(tensors=tensors, facts=facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from there. Raises `InputError` when it is of another training."""
        checkpoint.require(self._identity())
        restore_network(self.network, checkpoint.part("network"))
        if self.optimiser is not None:
            restore_optimiser(self.optimiser, checkpoint.part("optimiser"))
        if self.average is not None:
            restore_network(self.average.network, checkpoint.part("average"))
            self.average.updates = int(checkpoint.facts["averaged_steps"])
        self.best_state = checkpoint.part("best")
        self.best_logits = checkpoint.tensors["best_logits"].numpy()
        self.history = [EpochReport(**report) for report in checkpoint.facts["history"]]
        self.earlier = float(checkpoint.facts["seconds"])
        states = checkpoint.part("generator")
        torch.set_rng_state(states["torch"])
        # generators of different kinds of devices cannot take over from one another
        if checkpoint.facts["device"] == self.device.type:
            self.generator.set_state(states["augment"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"], self.device)

    def _identity(self) -> dict[str, Any]:
        """What two trainings must share for one to go on with the other's checkpoint."""
        settings = asdict(self.settings)
        del settings["device"], settings["threads"]
        return {"spec": self.spec.to_json(), "settings": settings, "films": self.films}

    def _generators(self) -> dict[str, Tensor]:
        states = {"torch": torch.get_rng_state(), "augment": self.generator.get_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _is_stale(self) -> bool:
        """Whether so many epochs went by without a better one that training stops."""
        if self.best is None or not self.settings.patience:
            return False
        return len(self.history) - self.best.epoch >= self.settings.patience

    def _epoch(self, epoch: int) -> EpochReport:
        """Train for one epoch, evaluate, and keep the weights if none were better."""
        begun = time.perf_counter()
        if self.workers.rank:
            seed = np.random.SeedSequence((self.settings.seed, epoch, self.workers.rank)).generate_state(1).item()
            torch.manual_seed(seed)
            self.generator.manual_seed(seed)
        if self.learns:
            freeze(self.groups, self.settings, epoch)
        losses = [
            self._step(epoch, step, index)
            for step, index in enumerate(films_of_epoch(self.settings, self.train_labels, epoch))
        ]
        logits = self._evaluate()
        diseased, odds = (self.val_labels > 0).astype(np.int64), disease_log_odds(logits)
        report = EpochReport(
            epoch=epoch,
            train_loss=float(np.mean(losses)),
            val_auc=auc(diseased, odds),
            val_loss=float(cross_entropy(torch.from_numpy(logits), torch.tensor(self.val_labels))),
            seconds=time.perf_counter() - begun,
            objective=None if self.judge is None else self.judge(diseased, odds),
        )
        self.history.append(report)
        if self.best is report:
            self.best_state, self.best_logits = self.state_dict(), logits
        return report

    def _step(self, epoch: int, step: int, index: Indices) -> float:
        """One step of gradient descent; the loss before it."""
        index = self.workers.share(index)
        labels = torch.from_numpy(self.train_labels[index]).to(self.device)
        films = self._films(index)
        if self.settings.mixup or self.settings.cutmix:
            films, labels = mix(
                films,
                labels,
                classes=len(self.spec.classes),
                mixup=self.settings.mixup,
                cutmix=self.settings.cutmix,
                rng=mixing_generator(self.settings, epoch, step),
            )
        train_mode(self.network)
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        value = self._gradients(films, labels)
        if self.optimiser is not None:
            steps = steps_of_epoch(self.settings, len(self.train_labels))
            share = rate(self.settings, (epoch - 1) * steps + step, self.settings.epochs * steps)
            set_rate(self.optimiser, self.settings.learning_rate * share)
            if self.settings.clip_norm:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
            self.optimiser.step()
        if self.average is not None:
            self.average.update(self.network)
        return value

    def _films(self, index: Indices) -> Tensor:
        """The training films of a step, changed; or what the stem says of them, which stands for them from here on."""
        if self.stem is not None:
            return self.stem.train[torch.from_numpy(index)].to(self.device)
        # only the batch is copied: the films may be a read-only view of memory that other processes share
        changed: Tensor = self.augment(torch.from_numpy(self.train[index]).to(self.device), self.generator)
        return changed

    def _logits(self, classifier: ScanClassifier, films: Tensor) -> Tensor:
        if self.stem is None:
            return classifier.logits(films)
        with self.stem.skipped(classifier.network):
            logits: Tensor = classifier.network(films)
        return logits.float()

    def _gradients(self, films: Tensor, labels: Tensor) -> float:
        """Add up the gradients of a step's batches; the mean loss of all its films."""
        # two films a batch, where there are so many: batch normalisation cannot do with one
        parts = max(1, min(self.settings.accumulate, len(films) // 2))
        whole, value = self.workers.total(importance(labels, self.weights).sum()), torch.zeros((), dtype=torch.float64)
        for batch, wanted in zip(films.tensor_split(parts), labels.tensor_split(parts), strict=True):
            with torch.set_grad_enabled(self.learns), _precision(self.device):
                logits = self._logits(self.classifier, batch)
                loss = LOSSES[self.settings.loss](
                    logits, wanted, weights=self.weights, smoothing=self.settings.label_smoothing
                )
                if parts > 1 or self.workers.count > 1:
                    loss = loss * (importance(wanted, self.weights).sum() / whole)
            value = value + loss.item()
            if self.learns:
                loss.backward()  # type: ignore[no-untyped-call]
        mean = float(self.workers.total(value.to(self.device)))
        if not math.isfinite(mean):
            raise self._diverged(f"the loss is {mean}")
        self.workers.add_up(list(self.network.parameters()))
        return mean

    @torch.inference_mode()
    def _evaluate(self) -> npt.NDArray[np.float32]:
        """Logits [N, C] of the validation films, as the engine computes them."""
        classifier = self.judged
        classifier.network.eval()
        found = torch.empty(len(self.val), len(self.spec.classes), device=self.device)
        if self.workers.rank == 0:
            for start in range(0, len(self.val), EVALUATION_BATCH):
                end = start + EVALUATION_BATCH
                films = torch.tensor(self.val[start:end]) if self.stem is None else self.stem.val[start:end]
                found[start:end] = self._logits(classifier, films.to(self.device))
        logits: npt.NDArray[np.float32] = self.workers.of_the_first(found).cpu().numpy()
        if not np.isfinite(logits).all():
            raise self._diverged("its logits are not finite")
        return logits

    def _diverged(self, how: str) -> RayscanError:
        return RayscanError(
            f"training of {self.spec.name} diverged: {how}; lower the learning rate ({self.settings.learning_rate:g})"
        )


def disease_log_odds(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits [N, C] -> log-odds [N] of any disease against none: ln((1 - p) / p) of the first class's probability p.

    From the logits, as the probability itself is 0 or 1 in float32 for films a network is sure of, and ties them.
    """
    diseases, none = logits[:, 1:], logits[:, 0]
    highest = diseases.max(axis=1)
    odds: npt.NDArray[np.float32] = highest + np.log(np.exp(diseases - highest[:, None]).sum(axis=1)) - none
    return odds


def _precision(device: torch.device) -> torch.autocast:
    """bfloat16 on GPUs. On CPUs float32: measured, it is faster once the allocator keeps its memory."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _digest(train: Films, val: Films) -> str:
    """Which films in which order, and their labels."""
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
    """Seed and threads for this training only; the caller's come back."""
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
