"""Torch as an engine: eager, which in float32 is the reference of all others, and compiled."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.engines.engine import EngineError, Inference, check_films, join_inferences, padded_batches
from models.engines.machine import EngineKind
from models.messages import first_line
from models.networks.classifier import InferenceGraph, ScanClassifier
from models.networks.float32 import exact_float32
from models.networks.preprocess import resize_films

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """A classifier of C classes on a device; it becomes the engine's own and takes the precision of the kind.

    Compiled, it runs films in batches of exactly `batch`; eager, as many as come. Films go to the device as uint8 and
    are prepared there. In fp32 nothing is computed in TensorFloat-32. Float16 ends at 65,504: films for which it
    overflows are run again in float32.

    A network is compiled when it first runs, so a compiled engine runs one batch at once: raises `EngineError` where
    the compiler fails, and another engine takes its place.
    """

    def __init__(self, classifier: ScanClassifier, kind: EngineKind, device: str, *, classes: int, batch: int) -> None:
        self.name = kind.name
        self._device = torch.device(device)
        self._classes = classes
        self._size = classifier.preprocess.size
        self._batch = batch if kind.engine == "torch-compile" else None
        self._exact = kind.precision == "fp32"
        classifier = classifier.eval().to(self._device).to(memory_format=torch.channels_last)
        self._in_float32 = InferenceGraph(copy.deepcopy(classifier)) if kind.precision == "fp16" else None
        if not self._exact:
            classifier.to_precision(DTYPES[kind.precision])
        graph = InferenceGraph(classifier)
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = (
            graph if self._batch is None else torch.compile(graph, dynamic=False)
        )
        if self._batch is not None:
            self._compile(self._batch)

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch."""
        check_films(pixels)
        if self._batch is None:
            return self._infer(pixels) if len(pixels) else join_inferences([], self._classes)
        parts = []
        for films, count in padded_batches(resize_films(pixels, self._size), self._batch):
            found = self._infer(films)
            parts.append(Inference(found.probabilities[:count], found.distance[:count]))
        return join_inferences(parts, self._classes)

    def _compile(self, batch: int) -> None:
        try:
            self._infer(np.zeros((batch, self._size, self._size), dtype=np.uint8))
        except (RuntimeError, OSError, ImportError) as error:  # torch's own errors of compilation are RuntimeErrors
            raise EngineError(f"torch.compile failed: {first_line(error)}") from error

    @torch.inference_mode()
    def _infer(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        # torch cannot hold read-only memory; the copy is of one batch
        films = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self._device.type == "cuda":
            films = films.pin_memory()
        films = films.to(self._device, non_blocking=True)
        try:
            with exact_float32() if self._exact else nullcontext():
                probabilities, distance = self._run(films)
        except NotImplementedError as error:
            raise EngineError(f"{self.name} lacks an operation of this network: {error}") from error
        found = Inference(probabilities.cpu().numpy(), distance.cpu().numpy())
        return found if self._in_float32 is None else self._repaired(found, films, self._in_float32)

    def _repaired(self, found: Inference, films: Tensor, in_float32: InferenceGraph) -> Inference:
        """The same, with what float16 could not hold computed anew; no distance at all is NaN, and none to repair."""
        broken = ~np.isfinite(found.probabilities).all(axis=1) | np.isinf(found.distance)
        if not broken.any():
            return found
        rows = np.flatnonzero(broken)
        with exact_float32():
            probabilities, distance = in_float32(films[torch.from_numpy(rows).to(films.device)])
        for old, new in zip(found, (probabilities, distance), strict=True):
            old[rows] = new.cpu().numpy()
        return found
