"""The schedule of each step: its learning rate, its films, and how they are mixed."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from tuning.training.settings import Sampling, TrainSettings

ONE_CYCLE_WARM_UP: Final = 0.25
"""Share of the steps in which the learning rate rises; it falls along a cosine in the rest (Smith & Topin 2018)."""

Indices = npt.NDArray[np.int64]


def rate(settings: TrainSettings, step: int, steps: int) -> float:
    """Learning rate at a step, counted from 0, of `steps`, as a share of the highest: above 0 and at most 1."""
    share = ONE_CYCLE_WARM_UP if settings.schedule == "one_cycle" else settings.warm_up
    rising = max(1, round(share * steps)) if share else 0
    if step < rising:
        return (step + 1) / rising
    if settings.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1))) / 2


def settled(epochs: int) -> int:
    """The first of so many epochs by the end of which the rate of `one_cycle` has fallen to half of its highest."""
    share = ONE_CYCLE_WARM_UP + (1 - ONE_CYCLE_WARM_UP) / 2
    return math.ceil(share * epochs)


def steps_of_epoch(settings: TrainSettings, films: int) -> int:
    """Number of whole steps in an epoch; at least one."""
    return max(1, films // (settings.batch_size * settings.accumulate))


def films_of_epoch(settings: TrainSettings, labels: Indices, epoch: int) -> list[Indices]:
    """Indices of the films of each step of an epoch (from 1); every epoch has its own order.

    Films that do not fill a step are left out of this epoch.
    """
    steps = steps_of_epoch(settings, len(labels))
    rng = np.random.default_rng((settings.seed, epoch))
    order = _order(settings.sampling, labels, rng)
    return np.array_split(order[: steps * settings.batch_size * settings.accumulate], steps)


def mixing_generator(settings: TrainSettings, epoch: int, step: int) -> np.random.Generator:
    """The generator that mixes the films of a step, counted from 0, of an epoch, from 1."""
    # step + 1, as numpy treats (seed, epoch, 0) like (seed, epoch), the stream for the order of films
    return np.random.default_rng((settings.seed, epoch, step + 1))


def _order(sampling: Sampling, labels: Indices, rng: np.random.Generator) -> Indices:
    if sampling == "shuffle":
        return rng.permutation(len(labels))
    # each class gets an equal share of the epoch: all its films as often as they fit, and a random few once more
    classes = rng.permutation(np.unique(labels))
    counts = [len(part) for part in np.array_split(np.arange(len(labels)), len(classes))]
    chosen = []
    for label, count in zip(classes, counts, strict=True):
        own = np.flatnonzero(labels == label)
        chosen += [rng.permutation(own) for _ in range(count // len(own))]
        chosen.append(rng.permutation(own)[: count % len(own)])
    return rng.permutation(np.concatenate(chosen))
