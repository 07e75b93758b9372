"""How one model is trained: everything a person, a job file or a search may choose."""

from dataclasses import dataclass
from typing import Literal, get_args

from models.errors import InputError
from tuning.training.augment.settings import Augmentation
from tuning.training.objectives import AUC, parse_objective

Optimiser = Literal["adamw", "sgd", "rmsprop", "nadam"]
Schedule = Literal["one_cycle", "cosine", "constant"]
Loss = Literal["cross_entropy", "focal"]
ClassWeighting = Literal["none", "balanced"]
Keep = Literal["best", "last"]
Sampling = Literal["shuffle", "balanced"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one model is trained."""

    epochs: int = 9
    """Passes over the training films."""
    batch_size: int = 32
    """Films that go through the network at once; films of one step where `accumulate` is 1."""
    accumulate: int = 1
    """Batches whose gradients add up to one step, for steps of more films than the memory holds. Without batch
    normalisation and dropout, the result is that of batches so many times as large."""
    learning_rate: float = 2e-3
    """The highest of the schedule."""
    schedule: Schedule = "one_cycle"
    """`one_cycle` rises in the first quarter of the steps and falls along a cosine; `cosine` rises in `warm_up` of them
    and falls likewise; `constant` rises in `warm_up` of them and stays."""
    warm_up: float = 0.05
    """Share of the steps in which the rate of `cosine` and `constant` rises, linearly."""
    weight_decay: float = 0.02
    """On weights of convolutions and linear layers only; decoupled for adamw and nadam, added to the gradient for sgd
    and rmsprop."""
    optimiser: Optimiser = "adamw"
    """`adamw`; `nadam` (Adam with Nesterov momentum); `sgd` with Nesterov momentum 0.9; `rmsprop` with momentum 0.9."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all weights together; a longer one is scaled down to it. 0: none is."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights, which is then evaluated and kept: 0.99 to 0.9999; 0 for
    none."""
    patience: int = 0
    """Epochs without improvement after which training stops; 0: it never stops early."""
    loss: Loss = "cross_entropy"
    """`cross_entropy` or `focal` (gamma 2)."""
    class_weighting: ClassWeighting = "none"
    """`balanced` gives all classes the same share of the loss; probabilities then overstate the rarer classes."""
    sampling: Sampling = "shuffle"
    """`shuffle`: each film once an epoch; `balanced`: as many films of each class in an epoch, those of a rare class
    several times. Probabilities then overstate the rarer classes."""
    label_smoothing: float = 0.0
    """Share of each label spread over all classes."""
    mixup: float = 0.0
    """Films blended with another of their step in a share drawn from Beta(mixup, mixup) (Zhang et al. 2018); 0: no."""
    cutmix: float = 0.0
    """Films with a box from another of their step, its area drawn from Beta(cutmix, cutmix) (Yun et al. 2019); 0: no.
    If `mixup` is on, too, each step draws one of them."""
    augment: float = 0.5
    """Strength of augmentation; 0 for none, 1 strong for a few thousand films and nine epochs."""
    flip: float = 0.0
    """Share of films mirrored; off, because the side is a finding:
    `tuning.training.augment.batch.Augmentation.flip`."""
    blur: float = 0.0
    """Share of films blurred."""
    cutout: float = 0.0
    """Share of films with a square covered."""
    elastic: float = 0.0
    """Share of films bent."""
    jpeg: float = 0.0
    """Share of films coded again as JPEG, against shortcuts by coding."""
    shrink: float = 0.0
    """Share of films shrunk and enlarged again, against shortcuts by sharpness."""
    operations: int = 0
    """Above 0, in place of `augment` and all shares but `flip`: operations drawn for each film, as RandAugment does."""
    magnitude: float = 1.0
    """Magnitude of drawn operations."""
    frozen_groups: int = 0
    """Groups of layers, from the input, that never learn; their batch normalisation stays as it is."""
    unfreeze_every: int = 0
    """Epochs after which one more group learns, beginning with the classifier alone (Howard & Ruder 2018, sec. 3.3);
    0: all groups that are not frozen learn from the start."""
    rate_decay: float = 1.0
    """Each group learns at this share of the rate of the group after it (Howard & Ruder 2018, sec. 3.2)."""
    keep: Keep = "best"
    """Which epoch's weights are the model: the best by `objective` on the validation films, or the last, which no film
    chooses."""
    objective: str = AUC
    """What the best epoch is chosen by: `auc`, `log_score`, or `sensitivity@specificity=0.9`, with any floor."""
    seed: int = 0
    """Seed of weights, order of films, augmentation and dropout."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:N`; by default a GPU if there is one."""
    threads: int | None = None
    """Torch threads of this training; by default torch's own choice."""

    @property
    def overstates(self) -> bool:
        """Whether the classes count alike, so that probabilities overstate the rarer ones until they are calibrated."""
        return "balanced" in {self.class_weighting, self.sampling}

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"unknown {name} {getattr(self, name)!r}; choose {' or '.join(get_args(kind))}")
        if self.class_weighting == self.sampling == "balanced":
            raise InputError(
                "class_weighting and sampling are both balanced, so that films of the rarer class would count twice"
                " over; choose one of the two"
            )
        _ = self.augmentation
        if parse_objective(self.objective).judge is None:
            raise InputError(
                f"an epoch cannot be judged by {self.objective}; choose auc, log_score or sensitivity@specificity=0.9"
            )

    def _check_numbers(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value} is out of range; choose {low} or more")
        if not 0 < self.learning_rate <= 10 or not 0 <= self.weight_decay <= 10:
            raise InputError("learning_rate must lie above 0 and weight_decay at 0 or above, both at most 10")
        for name in ("label_smoothing", "ema", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is out of range; choose from 0 up to 1")
        for name in ("mixup", "cutmix", "clip_norm"):
            if not 0 <= getattr(self, name) <= 1000:
                raise InputError(f"{name}={getattr(self, name)} is out of range; choose 0 (off) to 1000")
        if not 0 < self.rate_decay <= 1:
            raise InputError(f"rate_decay={self.rate_decay} is out of range; choose above 0, 1 at most")

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of these settings. Raises `InputError` if a value is out of range."""
        return Augmentation(
            strength=self.augment,
            flip=self.flip,
            blur=self.blur,
            cutout=self.cutout,
            elastic=self.elastic,
            jpeg=self.jpeg,
            shrink=self.shrink,
            operations=self.operations,
            magnitude=self.magnitude,
        )


_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "accumulate": 1,
    "threads": 1,
    "seed": 0,
    "patience": 0,
    "frozen_groups": 0,
    "unfreeze_every": 0,
}
_CHOICES = {
    "optimiser": Optimiser,
    "schedule": Schedule,
    "loss": Loss,
    "class_weighting": ClassWeighting,
    "sampling": Sampling,
    "keep": Keep,
}
