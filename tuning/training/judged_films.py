"""The films that judge each epoch of a training: the validation films, and perhaps perturbed copies of some."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.films import Films, choose_films
from models.statistics.robustness import CHANGES, perturbed

COPIED: Final = 100
"""Validation films that are perturbed, in each way: with a validation split of 785 films, their copies are 1,000."""


@dataclass(frozen=True, kw_only=True)
class JudgedFilms:
    """Validation films, and after them copies."""

    pixels: npt.NDArray[np.uint8]
    """[N, size, size]."""
    labels: npt.NDArray[np.int64]
    """Class index [N]."""
    copies: npt.NDArray[np.bool_]
    """Which of them are copies [N]."""


def count_judged(films: int, *, copies: bool) -> int:
    """About how many films there are to judge by, with so many of validation."""
    return films + (len(CHANGES) * min(films, COPIED) if copies else 0)


def judged_films(val: Films, *, copies: bool) -> JudgedFilms:
    """The validation films, perhaps with a copy of about COPIED of them for each of the `CHANGES`."""
    if not copies:
        return JudgedFilms(pixels=val.pixels, labels=val.labels, copies=np.zeros(len(val), dtype=bool))
    chosen = choose_films(val.labels, COPIED)
    changed = [perturbed(val.pixels[chosen], change) for change in CHANGES]
    return JudgedFilms(
        pixels=np.concatenate([val.pixels, *changed]),
        labels=np.concatenate([val.labels, *[val.labels[chosen]] * len(changed)]),
        copies=np.arange(len(val) + len(chosen) * len(changed)) >= len(val),
    )
