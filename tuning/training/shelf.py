"""The films of a training, where each step takes its own from.

On a GPU they stay, as uint8, in its memory: 262 MB for 5,232 films at 224 pixels. A step then copies nothing to the GPU
and waits for nothing. Where they would take more than a quarter of what is free there, and on CPUs, each step takes its
films from the array as it is, which may be a read-only view of memory that other processes share.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SHARE: Final = 0.25
"""Of a GPU's free memory, that films may take."""
CHUNK: Final = 512
"""Films copied to a GPU at a time."""


def stays(size: int, free: int) -> bool:
    """Whether data of `size` bytes stay on a device with `free` bytes; on a CPU, with none to be counted, never."""
    return size <= SHARE * free


class Shelf:
    """Films uint8 [N, H, W], given out by their indices, on a device."""

    def __init__(self, pixels: npt.NDArray[np.uint8], device: torch.device, *, stay: bool) -> None:
        self.pixels, self.device = pixels, device
        self.kept: Tensor | None = None
        if stay:
            self.kept = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(pixels), CHUNK):
                self.kept[start : start + CHUNK] = torch.tensor(pixels[start : start + CHUNK])

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, index: npt.NDArray[np.int64], here: Tensor) -> Tensor:
        """The films at indices [K], which `here` are on the device: [K, H, W]."""
        if self.kept is not None:
            return self.kept[here]
        return self._moved(torch.from_numpy(self.pixels[index]))

    def between(self, start: int, end: int) -> Tensor:
        """The films from `start` up to, not including, `end`."""
        if self.kept is not None:
            return self.kept[start:end]
        return self._moved(torch.tensor(self.pixels[start:end]))

    def _moved(self, films: Tensor) -> Tensor:
        """On the device; from pinned memory, so that the copy need not be waited for."""
        if self.device.type == "cuda":
            films = films.pin_memory()
        return films.to(self.device, non_blocking=True)
