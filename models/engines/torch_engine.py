"""Torch as an engine: eager, which in float32 is the reference of all others, and compiled."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.engines.engine import EngineError, Inference, check_films, join_inferences, padded_batches
from models.engines.machine import EngineKind
from models.networks.classifier import InferenceGraph, ScanClassifier
from models.networks.preprocess import resize_films


class TorchEngine:
    """A classifier of C classes on a device; it becomes the engine's own and takes the precision of the kind.

    Compiled, it runs films in batches of exactly `batch`; eager, as many as come. Films go to the device as uint8 and
    are prepared there.
    """

    def __init__(self, classifier: ScanClassifier, kind: EngineKind, device: str, *, classes: int, batch: int) -> None:
        self.name = kind.name
        self._device = torch.device(device)
        self._classes = classes
        self._size = classifier.preprocess.size
        self._batch = batch if kind.engine == "torch-compile" else None
        self._exact = kind.precision == "fp32" and self._device.type == "cuda"
        classifier = classifier.eval().to(self._device)
        if kind.precision == "bf16":
            classifier.to_bfloat16()
        graph = InferenceGraph(classifier.to(memory_format=torch.channels_last))
        self._run: Callable[[Tensor], tuple[Tensor, Tensor]] = (
            graph if self._batch is None else torch.compile(graph, dynamic=False)
        )

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

    @torch.inference_mode()
    def _infer(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        # torch cannot hold read-only memory; the copy is of one batch
        films = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if self._device.type == "cuda":
            films = films.pin_memory()
        try:
            # TensorFloat-32, the default of cuDNN, keeps 10 bits of mantissa: not what fp32 promises
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self._exact else nullcontext():
                probabilities, distance = self._run(films.to(self._device, non_blocking=True))
        except NotImplementedError as error:
            raise EngineError(f"{self.name} lacks an operation of this network: {error}") from error
        return Inference(probabilities.cpu().numpy(), distance.cpu().numpy())
