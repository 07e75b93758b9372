"""From grey levels to the network's input: one definition, inside the exported graph, for training and scoring alike.

Measured: folding it into the graph costs nothing against numpy outside, and removes the place where training and
scoring could part ways.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.spec import Preprocessing


def resize(pixels: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize of grey levels [N, H, W] (any dtype) to float32 [N, size, size] of whole grey levels.

    Rounding to whole levels makes films resized beforehand and kept as uint8 equal, bit for bit, to films resized here.
    """
    films = pixels.to(torch.float32)
    if films.shape[-2:] == (size, size):
        return films
    resized = functional.interpolate(films.unsqueeze(1), size=(size, size), mode="bilinear", antialias=True)
    return resized.squeeze(1).round().clamp(0, 255)


def resize_films(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """`resize` of a whole set [N, H, W], 64 films at a time; the very array when it has that size already."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    resized = np.empty((len(pixels), size, size), dtype=np.uint8)
    for start in range(0, len(pixels), 64):
        resized[start : start + 64] = resize(torch.tensor(pixels[start : start + 64]), size).numpy()
    return resized


class Preprocess(nn.Module):
    """uint8 [N, H, W] -> float32 [N, 1, size, size]; resizes when needed, normalises as the specification says."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.size = preprocessing.size
        self.normalise = preprocessing.normalise

    def forward(self, pixels: Tensor) -> Tensor:
        """The network's input."""
        grey = resize(pixels, self.size).unsqueeze(1)
        if self.normalise == "unit":
            return grey / 255
        if self.normalise == "symmetric":
            return grey / 127.5 - 1
        mean = grey.mean(dim=(2, 3), keepdim=True)
        deviation = (grey - mean).square().mean(dim=(2, 3), keepdim=True).sqrt()
        # one grey level at least: an almost uniform film must not become amplified noise
        return (grey - mean) / deviation.clamp_min(1.0)
