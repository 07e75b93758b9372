"""The frozen layers at a network's beginning, run once over the films instead of at every step.

If those layers never learn, their normalisation keeps its statistics, and films are not augmented, then their output
for a film is always the same. A step then runs only the layers that learn. The result is the same as without a stem,
but for the order in which floating-point numbers are added.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from models.networks.float32 import exact_float32
from tuning.training.augment.batch import Augmentation
from tuning.training.settings import TrainSettings

log = logging.getLogger("rayscan")

MOST_BYTES: Final = 1 << 30
"""Of the kept output, for training and validation films together; each running trial keeps its own."""
BATCH: Final = 64
TOLERANCE: Final = 1e-5
"""Largest difference of the logits that starting behind the stem may make, on the films it is tried with."""

Pixels = npt.NDArray[np.uint8]


def keeps_still(settings: TrainSettings) -> bool:
    """Whether frozen layers have the same output for a film at every step of a training with these settings."""
    changes = settings.mixup or settings.cutmix or settings.augmentation != Augmentation(magnitude=settings.magnitude)
    return settings.frozen_groups > 0 and not settings.unfreeze_every and not changes


@dataclass(frozen=True, kw_only=True)
class Stem:
    """The output of a network's frozen layers for all films."""

    layers: tuple[str, ...]
    """Names of the modules that need not run, in the order in which they would."""
    train: Tensor
    """[N, ...] on the CPU."""
    val: Tensor

    def skipped(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within the block this network, or a copy of it, takes the output of its stem in place of films."""
        return _skipped(network, self.layers)


def make_stem(
    network: nn.Module,
    preprocess: nn.Module,
    train: Pixels,
    val: Pixels,
    *,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Stem | None:
    """Run the frozen layers of a network once over films uint8 [N, H, W].

    `precision` is the autocast of training steps; validation films run in float32, without TensorFloat-32. None if
    these layers cannot be separated from the others, if their output varies from run to run, or if it is too large to
    be kept.
    """

    def batches(films: Pixels) -> Iterator[Tensor]:
        for start in range(0, len(films), BATCH):
            yield preprocess(torch.tensor(films[start : start + BATCH]).to(device))

    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            sample = next(batches(train[:2]))
            layers = _layers(network, sample)
            if layers is None:
                return None
            each = _until(network, layers[-1], sample)[0].nbytes
            if each * (len(train) + len(val)) > MOST_BYTES:
                log.info("the output of the frozen layers takes %.1f MB a film: they run at every step", each / 2**20)
                return None
            with exact_float32():
                of_val = torch.cat([_until(network, layers[-1], films).cpu() for films in batches(val)])
            with precision():
                of_train = torch.cat([_until(network, layers[-1], films).cpu() for films in batches(train)])
    finally:
        network.train(was_training)
    log.info("%d frozen modules run once and not at every step; %.1f kB a film are kept", len(layers), each / 2**10)
    return Stem(layers=layers, train=of_train, val=of_val)


class _ReachedError(Exception):
    """Ends a forward pass whose rest is not needed."""


def _until(network: nn.Module, name: str, films: Tensor) -> Tensor:
    """The output of the module of this name when the network runs on films."""
    outputs: list[Tensor] = []

    def take(module: nn.Module, given: Any, result: Tensor) -> None:
        outputs.append(result)
        raise _ReachedError

    with _hooked(network.get_submodule(name), take):
        try:
            network(films)
        except _ReachedError:
            return outputs[0]
    raise AssertionError(f"{name} did not run")


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _skipped(network: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Within the block these modules return their input."""
    modules = [network.get_submodule(name) for name in names]
    for module in modules:
        module.forward = _identity
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _identity(films: Tensor) -> Tensor:
    return films


def _layers(network: nn.Module, sample: Tensor) -> tuple[str, ...] | None:
    """The modules that run before the first one that learns, tried on films; None if they cannot be separated."""
    order: list[str] = []
    with ExitStack() as hooks:
        for name in _units(network, ""):
            if not name:
                return None
            note = lambda module, given, result, name=name: order.append(name)  # noqa: E731
            hooks.enter_context(_hooked(network.get_submodule(name), note))
        expected = network(sample)
    first = tuple(takewhile(lambda name: not _learns(network.get_submodule(name)), order))
    modules = [network.get_submodule(name) for name in first]
    if not any(True for module in modules for _ in module.parameters()) or len(set(order)) < len(order):
        return None
    if any(_varies(part) for module in modules for part in module.modules()):
        return None
    seen = _until(network, first[-1], sample)
    try:
        with _skipped(network, first):
            same = torch.allclose(network(seen), expected, atol=TOLERANCE, rtol=0)
    except RuntimeError:  # torch's error for shapes that do not fit: code between the modules changes them
        same = False
    return first if same else None


def _units(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the largest modules in which nothing learns, and of the smallest that hold parameters that learn."""
    if _learns(module) and not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        for child, inner in module.named_children():
            yield from _units(inner, f"{name}.{child}" if name else child)
    else:
        yield name


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _varies(module: nn.Module) -> bool:
    """Whether the output of a frozen module in training mode may vary for the same film."""
    if isinstance(module, _NormBase):
        # without parameters, `tuning.training.optimiser.train_mode` leaves it in training mode
        return not list(module.parameters(recurse=False))
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return bool(getattr(module, "drop_prob", 0))
