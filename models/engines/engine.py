"""The interface of an engine: a trained model, ready to run on one machine by one library in one precision.

An engine takes decoded films and gives calibrated probabilities, and how far each film lies from the training films.
`torch_engine.py` and `openvino_engine.py` implement it; `choice.py` chooses the one that runs a bundle.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from models.errors import InputError, RayscanError


class EngineError(RayscanError):
    """An engine cannot run this model here, or does not compute what torch does. Another engine can take its place."""


class Inference(NamedTuple):
    """An engine's output for N films."""

    probabilities: npt.NDArray[np.float32]
    """Calibrated, [N, C], in the order of the bundle's classes."""
    distance: npt.NDArray[np.float32]
    """How far each film lies from the training films in feature space, [N]; NaN if the bundle has no familiarity."""


class Engine(Protocol):
    """Scores films: grey levels uint8 [N, H, W] -> `Inference`.

    The caller chooses N; 8 is fastest on a CPU's caches, hundreds on a GPU. Arrays may be read-only. Raises
    `InputError` for other arrays.
    """

    @property
    def name(self) -> str:
        """Engine, precision and device; recorded with the scores because precision moves probabilities."""
        ...

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch."""
        ...


def check_films(pixels: npt.NDArray[np.uint8]) -> None:
    """Raise `InputError` unless these are films uint8 [N, H, W]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise InputError(f"an engine takes uint8 films [N, H, W], not {pixels.dtype} {list(pixels.shape)}")


def padded_batches(pixels: npt.NDArray[np.uint8], batch: int) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Films [N, H, W] as contiguous arrays of exactly `batch`, each with the number of these films in it.

    The last array is filled up with black films: an engine of a fixed batch size takes no smaller one.
    """
    for start in range(0, len(pixels), batch):
        films = np.ascontiguousarray(pixels[start : start + batch])
        count = len(films)
        if count < batch:
            films = np.concatenate([films, np.zeros((batch - count, *films.shape[1:]), dtype=np.uint8)])
        yield films, count


def join_inferences(parts: list[Inference], classes: int) -> Inference:
    """The inferences of consecutive films as one; empty arrays when there are none."""
    if not parts:
        return Inference(np.empty((0, classes), dtype=np.float32), np.empty(0, dtype=np.float32))
    return Inference(
        np.concatenate([part.probabilities for part in parts]), np.concatenate([part.distance for part in parts])
    )
