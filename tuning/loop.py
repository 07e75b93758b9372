"""One training loop: for `rayscan train`, for the trials of a search and for Ray Train workers. Knows no ray.

The validation films go through the very module that scores later, in float32, so that the temperature and thresholds
fitted on their logits hold for the engine. The epoch of the best validation AUC is the one that is kept.

Films larger than the model's input are shrunk once, before the first epoch; `models.preprocess.resize` gives whole grey
levels, so this equals, bit for bit, the shrinking inside the graph that scoring does.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.allocator import keep_memory
from models.augment import Augment
from models.classifier import ScanClassifier
from models.errors import InputError, RayscanError
from models.films import Films
from models.losses import class_weights, cross_entropy, focal
from models.machine import choose_device
from models.metrics import auc
from models.preprocess import Preprocess, resize_films
from models.spec import ModelSpec
from models.zoo import Majority, build

log = logging.getLogger("rayscan")

Optimiser = Literal["adamw", "sgd"]
Loss = Literal["cross_entropy", "focal"]
ClassWeighting = Literal["none", "balanced"]
StateDict = dict[str, Tensor]

WARM_UP: Final = 0.25
"""Share of the steps in which the learning rate rises; it falls along a cosine in the rest (Smith & Topin 2018)."""
CLIP_NORM: Final = 1.0
EVALUATION_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one model is trained."""

    epochs: int = 9
    """Passes over the training films."""
    batch_size: int = 32
    """Films of one step."""
    learning_rate: float = 2e-3
    """Highest of the one cycle."""
    weight_decay: float = 0.02
    """Decoupled for adamw; weights of convolutions and linear layers only."""
    optimiser: Optimiser = "adamw"
    """`adamw`, or `sgd` with Nesterov momentum 0.9."""
    loss: Loss = "cross_entropy"
    """`cross_entropy` or `focal` (gamma 2)."""
    class_weighting: ClassWeighting = "none"
    """`balanced` gives both classes the same share of the loss; probabilities then overstate the rarer class."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    augment: float = 0.5
    """Strength of augmentation; 0 for none, 1 strong for a few thousand films and nine epochs."""
    seed: int = 0
    """Of weights, order of films, augmentation and dropout."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:N`; by default a GPU when there is one."""
    threads: int | None = None
    """Torch threads of this training; by default torch's own choice."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2), ("seed", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value} is out of range; choose {low} or more")
        if not 0 < self.learning_rate <= 10 or not 0 <= self.weight_decay <= 10:
            raise InputError("learning_rate must lie above 0 and weight_decay at 0 or above, both at most 10")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing={self.label_smoothing} is out of range; choose from 0 up to 1")
        for name, kind in (("optimiser", Optimiser), ("loss", Loss), ("class_weighting", ClassWeighting)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"unknown {name} {getattr(self, name)!r}; choose {' or '.join(get_args(kind))}")
        Augment(self.augment)


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


OnEpoch = Callable[[EpochReport, Callable[[], StateDict]], bool]
"""Called after each epoch with its report and a getter of the weights as they are now; False stops training."""


def fit(spec: ModelSpec, train: Films, val: Films, settings: TrainSettings, on_epoch: OnEpoch | None = None) -> Fitted:
    """Train a model; the same arguments give the same weights on the same machine and number of threads.

    Raises `InputError` for films that cannot be trained on, `RayscanError` when training diverges.
    """
    _check(spec, train, val)
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_memory()
    with _deterministic(settings, device):
        return _Training(spec, train, val, settings, device).run(on_epoch)


class _Training:
    """The state of one training."""

    def __init__(
        self, spec: ModelSpec, train: Films, val: Films, settings: TrainSettings, device: torch.device
    ) -> None:
        self.spec, self.settings, self.device = spec, settings, device
        self.train, self.train_labels = resize_films(train.pixels, spec.preprocessing.size), train.labels
        self.val, self.val_labels = resize_films(val.pixels, spec.preprocessing.size), val.labels
        self.network = build(spec).to(device).to(memory_format=torch.channels_last)
        self.classifier = ScanClassifier(Preprocess(spec.preprocessing), self.network).to(device)
        self.augment = Augment(settings.augment)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        labels = torch.tensor(train.labels)
        balanced = settings.class_weighting == "balanced"
        self.weights = class_weights(labels, len(spec.classes)).to(device) if balanced else None
        self.learns = any(parameter.requires_grad for parameter in self.network.parameters())
        if isinstance(self.network, Majority):
            self.network.learn(labels.to(device))

    def run(self, on_epoch: OnEpoch | None) -> Fitted:
        started = time.perf_counter()
        epochs = self.settings.epochs if self.learns else 1
        steps = max(1, len(self.train_labels) // self.settings.batch_size)
        optimiser = _optimiser(self.network, self.settings) if self.learns else None
        history: list[EpochReport] = []
        best, best_state, best_logits = None, self.state_dict(), np.empty(0, dtype=np.float32)
        for epoch in range(1, epochs + 1):
            begun = time.perf_counter()
            losses = [
                self._step(index, optimiser, rate=_one_cycle((epoch - 1) * steps + step, epochs * steps))
                for step, index in enumerate(self._batches(epoch, steps))
            ]
            logits = self._evaluate()
            report = EpochReport(
                epoch=epoch,
                train_loss=float(np.mean(losses)),
                val_auc=auc(self.val_labels, logits[:, 1] - logits[:, 0]),
                val_loss=float(cross_entropy(torch.from_numpy(logits), torch.tensor(self.val_labels))),
                seconds=time.perf_counter() - begun,
            )
            log.info(
                "%s epoch %d/%d: train loss %.4f, val AUC %.4f, val loss %.4f, %.1f s",
                *(self.spec.name, epoch, epochs, report.train_loss, report.val_auc, report.val_loss, report.seconds),
            )
            history.append(report)
            if best is None or (report.val_auc, -report.val_loss) > (best.val_auc, -best.val_loss):
                best, best_state, best_logits = report, self.state_dict(), logits
            if on_epoch is not None and not on_epoch(report, self.state_dict):
                break
        assert best is not None
        return Fitted(
            spec=self.spec,
            settings=self.settings,
            state_dict=best_state,
            val_logits=best_logits,
            history=tuple(history),
            best=best,
            seconds=time.perf_counter() - started,
        )

    def state_dict(self) -> StateDict:
        """A copy of the weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def _batches(self, epoch: int, steps: int) -> list[npt.NDArray[np.int64]]:
        """Indices of this epoch's films in its own order; what does not fill a batch waits for another epoch."""
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.train_labels))
        return np.array_split(order[: steps * self.settings.batch_size], steps)

    def _step(self, index: npt.NDArray[np.int64], optimiser: torch.optim.Optimizer | None, *, rate: float) -> float:
        """One step of gradient descent; the loss before it."""
        # only the batch is copied: the films may be a read-only view of memory that other processes share
        films = torch.from_numpy(self.train[index]).to(self.device)
        labels = torch.from_numpy(self.train_labels[index]).to(self.device)
        self.network.train()
        with torch.set_grad_enabled(self.learns):
            films = self.augment(films, self.generator)
            # measured: on CPUs bfloat16 is slower in training than float32 once the allocator keeps its memory
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.classifier.logits(films)
            minimised = cross_entropy if self.settings.loss == "cross_entropy" else focal
            loss = minimised(logits, labels, weights=self.weights, smoothing=self.settings.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise RayscanError(
                f"training of {self.spec.name} diverged: the loss is {value};"
                f" lower the learning rate ({self.settings.learning_rate:g})"
            )
        if optimiser is not None:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * rate
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
            optimiser.step()
        return value

    @torch.inference_mode()
    def _evaluate(self) -> npt.NDArray[np.float32]:
        """Logits [N, C] of the validation films, as the engine computes them."""
        self.network.eval()
        parts = [
            self.classifier.logits(torch.tensor(self.val[start : start + EVALUATION_BATCH]).to(self.device)).cpu()
            for start in range(0, len(self.val), EVALUATION_BATCH)
        ]
        logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        if not np.isfinite(logits).all():
            raise RayscanError(
                f"training of {self.spec.name} diverged: its logits are not finite;"
                f" lower the learning rate ({self.settings.learning_rate:g})"
            )
        return logits


def _check(spec: ModelSpec, train: Films, val: Films) -> None:
    if len(train) < 2:
        raise InputError(f"training needs at least 2 films, there are {len(train)}; prepare a larger dataset")
    for split, films in (("training", train), ("validation", val)):
        missing = [name for index, name in enumerate(spec.classes) if not (films.labels == index).any()]
        if missing:
            raise InputError(f"there are no {split} films of class {', '.join(missing)}; prepare a larger dataset")
        if films.labels.min() < 0 or films.labels.max() >= len(spec.classes):
            raise InputError(f"{split} films have labels beyond the classes {', '.join(spec.classes)}")


def _optimiser(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """No decay for biases and normalisation, which it would only push off their purpose."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _one_cycle(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step from 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2


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
