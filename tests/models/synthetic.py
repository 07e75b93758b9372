"""Tiny made-up films: a bright blob on noise stands for disease."""

import numpy as np
import torch
from torch import Tensor, nn

from models.films import Films
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
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


class CountsBright(nn.Module):
    """What a network that finds bright spots would do, without training: disease is how much lies above a level."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 1, 4, stride=4)
        self.above = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.patches.weight.fill_(1 / 16)
            self.patches.bias.fill_(-0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        found = self.above(self.patches(x)).mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(found), found], dim=1)


def counts_bright() -> ScanClassifier:
    return ScanClassifier(Preprocess(Preprocessing(size=SIZE, normalise="unit")), CountsBright()).eval()
