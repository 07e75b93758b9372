"""Heads: classifiers fitted to frozen features by L-BFGS, and put back into the network that computes the features.

A head takes 0.2 to 0.4 s where its features took 13 to 15 s (`tuning/training/features.py`), so a grid of heads costs
next to nothing. A head of one layer replaces the classifier of its network, which then is a model like any other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import InputError
from models.networks.zoo import layer_groups
from models.statistics.calibration import disease_log_odds
from models.statistics.metrics import auc
from tuning.training.features import Features
from tuning.training.head_settings import HeadSettings
from tuning.training.losses import cross_entropy

AXES: Final = 128
"""Principal axes that a hidden layer sees of wider features: a third to two thirds of the time, and an AUC that was
lower by 0.0010 at most, of 0.996."""
CONSTANT: Final = 1e-6
"""Standard deviation, as a share of a feature's largest value, up to which the feature counts as constant."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Linear layers on features as the network gives them, with ReLU between."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Weight float32 [outputs, inputs] and bias [outputs] of each."""

    @torch.inference_mode()
    def logits(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[N, D] -> [N, C]."""
        computed: npt.NDArray[np.float32] = _forward(torch.from_numpy(values), self.layers).numpy()
        return computed


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """A trained head and its result on the validation films."""

    head: Head
    settings: HeadSettings
    val_auc: float
    val_logits: npt.NDArray[np.float32]
    """[N, C], in the order of the validation films."""
    seconds: float


# tensors made in inference mode have no gradient, and callers are often in that mode
@torch.inference_mode(mode=False)
def fit_head(train: Features, val: Features, settings: HeadSettings, *, classes: int = 2) -> FittedHead:
    """Train a head by L-BFGS on all films at once; the same arguments give the same head.

    Raises `InputError` unless both sides have features of the same width and films of every class.
    """
    started = time.perf_counter()
    if train.values.shape[1] != val.values.shape[1]:
        raise InputError(
            f"features of {train.values.shape[1]} and of {val.values.shape[1]} numbers are not of one network;"
            " compute both with the same one"
        )
    for side, some in (("training", train), ("validation", val)):
        missing = sorted(set(range(classes)) - set(some.labels.tolist()))
        if missing:
            raise InputError(f"there are no {side} films of class {missing[0]}; prepare a larger dataset")
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    mean, slope = _standard(values)
    standard = (values - mean) * slope
    axes = _axes(standard, settings)
    layers = _minimise(standard if axes is None else standard @ axes, labels, settings, classes)
    first, bias = layers[0]
    first = first if axes is None else first @ axes.T
    # the standardisation becomes part of the first layer, which then takes the features as they are
    layers[0] = (first * slope, bias - first @ (mean * slope))
    head = Head(layers=tuple(layers))
    logits = head.logits(val.values)
    return FittedHead(
        head=head,
        settings=settings,
        val_auc=auc(val.labels, disease_log_odds(logits)),
        val_logits=logits,
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def install_head(network: nn.Module, head: Head) -> None:
    """Replace the network's classifier by a head of one layer, in place.

    Raises `InputError` for a head with a hidden layer, which does not fit there, or of another shape.
    """
    if len(head.layers) != 1:
        raise InputError("a head with a hidden layer does not fit into the classifier of a network; choose hidden=0")
    ((weight, bias),) = head.layers
    classifier = layer_groups(network)[-1]
    if len(classifier) != 2 or classifier[0].flatten(1).shape != weight.shape:
        raise InputError(
            f"this head of {list(weight.shape)} does not fit the network's classifier"
            f" {[list(part.shape) for part in classifier]}; train one on the network's own features"
        )
    classifier[0].copy_(weight.view_as(classifier[0]))
    classifier[1].copy_(bias)


def _standard(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] of features [N, D], and the factor [D] that makes their deviation 1; 0 for constant features."""
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    deviation = variance.sqrt()
    varies = deviation > CONSTANT * values.abs().amax(dim=0)
    return mean, torch.where(varies, 1 / deviation, 0.0)


def _axes(values: Tensor, settings: HeadSettings) -> Tensor | None:
    """The first principal axes [D, AXES] of standardised features; None if the head takes all features."""
    if not settings.hidden or values.shape[1] <= AXES:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        # Halko et al. 2011: the leading axes in a small part of the time that all of them take
        _, _, right = torch.svd_lowrank(values, q=min(AXES + 8, *values.shape), niter=2)
    return right[:, :AXES]


def _minimise(values: Tensor, labels: Tensor, settings: HeadSettings, classes: int) -> list[tuple[Tensor, Tensor]]:
    """The layers of the head with the lowest loss on standardised features [N, D]."""
    widths = [values.shape[1], *([settings.hidden] if settings.hidden else []), classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        weights = [
            torch.randn(outputs, inputs) * (2 / inputs) ** 0.5 if settings.hidden else torch.zeros(outputs, inputs)
            for inputs, outputs in pairwise(widths)
        ]
    layers = [(weight.requires_grad_(), torch.zeros(len(weight), requires_grad=True)) for weight in weights]
    optimiser = torch.optim.LBFGS(
        [parameter for layer in layers for parameter in layer],
        max_iter=settings.steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = sum(weight.square().sum() for weight, _ in layers)
        total = cross_entropy(_forward(values, layers), labels) + settings.l2 / 2 * penalty
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def _forward(values: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for number, (weight, bias) in enumerate(layers):
        values = nn.functional.linear(torch.relu(values) if number else values, weight, bias)
    return values
