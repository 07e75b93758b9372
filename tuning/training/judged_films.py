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


def originals(labels: npt.NDArray[np.int64], *, copies: bool) -> npt.NDArray[np.int64]:
    """Which validation film each judged one is, or is a copy of: the films in their order, then the copies.

    `labels` [N] are those of the validation films.
    """
    films = np.arange(len(labels))
    return np.concatenate([films, *[choose_films(labels, COPIED)] * len(CHANGES)]) if copies else films


def judged_films(val: Films, *, copies: bool) -> JudgedFilms:
    """The validation films, perhaps with a copy of about COPIED of them for each of the `CHANGES`."""
    of, pixels = originals(val.labels, copies=copies), val.pixels
    if copies:
        changed = zip(CHANGES, np.split(of[len(val) :], len(CHANGES)), strict=True)
        pixels = np.concatenate([pixels, *[perturbed(pixels[films], change) for change, films in changed]])
    return JudgedFilms(pixels=pixels, labels=val.labels[of], copies=np.arange(len(of)) >= len(val))
