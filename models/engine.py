"""What runs a bundle on films: one interface, so that callers do not know which engine they got.

Today there is eager torch in float32, the reference every faster engine must agree with.
"""

import logging
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from models.allocator import keep_memory
from models.bundle import Bundle
from models.errors import InputError

log = logging.getLogger("rayscan")


class Inference(NamedTuple):
    """What an engine says about N films."""

    probabilities: npt.NDArray[np.float32]
    """Calibrated, [N, C], in the order of the bundle's classes."""
    distance: npt.NDArray[np.float32]
    """How far each film lies from the training films in feature space, [N]; NaN where the bundle cannot tell."""


class Engine(Protocol):
    """Grey levels uint8 [N, H, W] -> what the model says about them.

    The caller chooses N; 8 is fastest on a CPU's caches, hundreds on a GPU.
    """

    @property
    def name(self) -> str:
        """Engine, precision and device; recorded with the scores because precision moves probabilities."""
        ...

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch; arrays may be read-only."""
        ...


class EagerEngine:
    """Torch, operation by operation, in float32."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.name = f"torch-eager-fp32-{device.type}"
        self._device = device
        self._classes = len(bundle.spec.classes)
        self._classifier = bundle.classifier().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise InputError(f"an engine takes uint8 films [N, H, W], not {pixels.dtype} {list(pixels.shape)}")
        if len(pixels) == 0:
            return Inference(np.empty((0, self._classes), dtype=np.float32), np.empty(0, dtype=np.float32))
        # torch cannot hold read-only memory; the copy is of one batch
        films = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        probability: npt.NDArray[np.float32] = self._classifier(films.to(self._device)).cpu().numpy()
        return Inference(probability, np.full(len(pixels), np.nan, dtype=np.float32))


def choose_device(name: str | None = None) -> torch.device:
    """The named torch device, else a GPU when there is one, else the CPU.

    Raises `InputError` for a device that is not on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; choose cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise InputError(f"device {name!r} is not supported; choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not on this machine; choose cpu or one of its GPUs")
    return device


def load_engine(bundle: Bundle, *, device: str | None = None, threads: int | None = None) -> Engine:
    """The fastest engine for this machine. `threads` sets torch's for the whole process; None leaves them."""
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_memory()
        if threads is not None:
            torch.set_num_threads(threads)
    engine = EagerEngine(bundle, chosen)
    log.info("model %s runs on %s", bundle.model_id, engine.name)
    return engine
