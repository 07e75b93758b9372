"""Tiny made-up films: a bright blob on noise stands for disease."""

import numpy as np

from models.films import Films
from models.spec import ModelSpec, Preprocessing, Scalar

SIZE = 32


def blob_films(count: int, *, seed: int = 0, contrast: int = 90, size: int = SIZE) -> Films:
    """Half with a blob at a random place, half without; every second film with one is bacterial."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    pixels = rng.integers(40, 120, (count, size, size), dtype=np.uint8)
    for index in np.flatnonzero(labels):
        top, left = rng.integers(2, size - size // 4 - 2, 2)
        pixels[index, top : top + size // 4, left : left + size // 4] += np.uint8(contrast)
    subtypes = np.where(labels == 0, "", np.where(np.arange(count) % 4 == 1, "bacteria", "virus"))
    names = np.array([f"film-{seed}-{index}" for index in range(count)])
    return Films(pixels=pixels, labels=labels, patients=names, subtypes=subtypes, scan_ids=names)


def small_spec(name: str = "cnn", size: int = SIZE, **parameters: Scalar) -> ModelSpec:
    """A model quick enough for a test."""
    if name == "cnn" and not parameters:
        parameters = {"depth": 2, "width": 8, "dropout": 0.0}
    return ModelSpec(name=name, parameters=parameters, preprocessing=Preprocessing(size=size))
