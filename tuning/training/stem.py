"""The frozen layers at a network's beginning, run once over the films instead of at every step.

Where those layers never learn, their normalisation keeps its statistics, and no film is changed from epoch to epoch,
what they say of a film is always the same. A step then only runs the layers that learn. The result is that of the
training without this, but for the order in which floating-point numbers are added.
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

from tuning.training.augment.batch import Augmentation
from tuning.training.settings import TrainSettings

log = logging.getLogger("rayscan")

MOST_BYTES: Final = 1 << 30
"""Of what is kept, for training and validation films together; each trial that runs keeps its own."""
BATCH: Final = 64
TOLERANCE: Final = 1e-5
"""Of the logits of a network that starts behind its stem, on the films it is tried with."""

Pixels = npt.NDArray[np.uint8]


def keeps_still(settings: TrainSettings) -> bool:
    """Whether frozen layers say the same of a film at every step of a training with these settings."""
    changed = settings.mixup or settings.cutmix or settings.augmentation != Augmentation(magnitude=settings.magnitude)
    return settings.frozen_groups > 0 and not settings.unfreeze_every and not changed


@dataclass(frozen=True, kw_only=True)
class Stem:
    """What the frozen layers of a network say of all films."""

    layers: tuple[str, ...]
    """Names of its modules that need not run, in the order in which they would."""
    train: Tensor
    """[N, ...] on the CPU."""
    val: Tensor

    def skipped(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within the block this network, or a copy of it, takes what stands here in place of films."""
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

    `precision` is what training steps run in; validation films are seen in float32. None where these layers do not
    stand apart from the others, differ from one run to the next, or say too much to be kept.
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
                log.info("what the frozen layers say takes %.1f MB a film: they run at every step", each / 2**20)
                return None
            of_val = torch.cat([_until(network, layers[-1], films).cpu() for films in batches(val)])
            with precision():
                of_train = torch.cat([_until(network, layers[-1], films).cpu() for films in batches(train)])
    finally:
        network.train(was_training)
    log.info("%d frozen modules run once and not at every step; %.1f kB a film are kept", len(layers), each / 2**10)
    return Stem(layers=layers, train=of_train, val=of_val)


class _ReachedError(Exception):
    """Ends a forward pass where its rest is not needed."""


def _until(network: nn.Module, name: str, films: Tensor) -> Tensor:
    """What the module of this name gives when the network sees films."""
    found: list[Tensor] = []

    def take(module: nn.Module, given: Any, result: Tensor) -> None:
        found.append(result)
        raise _ReachedError

    with _hooked(network.get_submodule(name), take):
        try:
            network(films)
        except _ReachedError:
            return found[0]
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
    """These modules hand on what they are given."""
    modules = [network.get_submodule(name) for name in names]
    for module in modules:
        module.forward = _hand_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _hand_on(films: Tensor) -> Tensor:
    return films


def _layers(network: nn.Module, sample: Tensor) -> tuple[str, ...] | None:
    """The modules that run before the first one that learns, tried out on films; None where they do not stand apart."""
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
    except RuntimeError:  # torch's word for shapes that do not fit: something between the modules changes them
        same = False
    return first if same else None


def _units(module: nn.Module, name: str) -> Iterator[str]:
    """The largest modules that learn nothing, and the smallest that hold what learns."""
    if _learns(module) and not any(one.requires_grad for one in module.parameters(recurse=False)):
        for child, inner in module.named_children():
            yield from _units(inner, f"{name}.{child}" if name else child)
    else:
        yield name


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _varies(module: nn.Module) -> bool:
    """Whether a module in training mode may say something else of the same film."""
    if isinstance(module, _NormBase):
        return not list(
            module.parameters(recurse=False)
        )  # `tuning.training.optimiser.train_mode` leaves it in training mode
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return bool(getattr(module, "drop_prob", 0))
