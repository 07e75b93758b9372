"""Arithmetic on fields: float32 arrays [h, w] over the pixels of a film."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.floating[Any]]
"""float32 in fact; numpy's types lose the width in arithmetic with Python numbers."""


def rise(distance: Field, soft: float) -> Field:
    """Smooth step from 0 to 1 over a width `soft` centred where `distance` is 0."""
    t = np.multiply(distance, np.float32(1 / soft), dtype=np.float32)
    t += np.float32(0.5)
    np.clip(t, np.float32(0), np.float32(1), out=t)
    step = np.float32(3) - 2 * t
    step *= t
    step *= t
    return step


def cloud(rng: np.random.Generator, cells: int, shape: tuple[int, ...]) -> Field:
    """Smooth noise [h, w] of unit deviation at its nodes, about `cells` of them across."""
    return enlarge(rng.standard_normal((cells, cells), np.float32), *shape)


def enlarge(field: Field, height: int, width: int) -> Field:
    """Resample [h, w] to [height, width], bicubic."""
    if field.shape == (height, width):
        return field
    return np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC), np.float32)
