"""OpenVINO as an engine: a model's exported graph, compiled for this CPU. Needs no torch.

The graph is made once, when the model is promoted, and stands in its bundle: converting a large backbone takes seconds
of CPU time and importing torch and timm five more, which every worker of every night would pay.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from models.engines.engine import EngineError, Inference, check_films, join_inferences, padded_batches
from models.engines.machine import EngineKind
from models.messages import first_line

if TYPE_CHECKING:
    import openvino

HINTS: Final = {"fp32": "f32", "bf16": "bf16"}


class OpenVINOEngine:
    """A graph on the CPU, in batches of exactly `batch` films.

    Films of another size than the network's are resized outside the graph, by the same code as in it: whole grey
    levels, so nothing is lost between the two.
    """

    def __init__(
        self, graph: "openvino.Model", kind: EngineKind, *, size: int, classes: int, batch: int, threads: int
    ) -> None:
        openvino = import_openvino()
        self.name = kind.name
        self._size, self._classes, self._batch = size, classes, batch
        graph = graph.clone()
        graph.reshape([batch, size, size])
        hints: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[kind.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # pinned, every process of one thread would take the same first core
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile this network: {first_line(error)}") from error

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Inference:
        """Score a batch."""
        check_films(pixels)
        parts = []
        for films, count in padded_batches(_sized(pixels, self._size), self._batch):
            outputs = self._request.infer([films])
            parts.append(Inference(outputs[0][:count], outputs[1][:count]))
        return join_inferences(parts, self._classes)


def import_openvino() -> Any:
    """The module, imported only for CPUs (it takes a quarter of a second), and without its telemetry.

    `import openvino` reports itself over the network and leaves an identifier in the home folder when
    openvino_telemetry, which is installed with it, can be imported. No hospital has agreed to that. None in
    `sys.modules` is Python's way to say that a module cannot be imported; openvino then takes a stub.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def read_graph(xml: bytes, weights: bytes) -> "openvino.Model":
    """The graph that `models.engines.export.export_graph` wrote."""
    return import_openvino().Core().read_model(xml, weights)


def _sized(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    if pixels.shape[1:] == (size, size):
        return pixels
    from models.networks.preprocess import resize_films  # noqa: PLC0415 (torch, which most models do not need here)

    return resize_films(pixels, size)
