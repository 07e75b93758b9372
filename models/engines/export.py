"""A model's graph as OpenVINO files: from uint8 films to calibrated probabilities and the feature distance."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from models.engines.engine import EngineError
from models.engines.openvino_engine import import_openvino
from models.messages import first_line
from models.networks.classifier import InferenceGraph, ScanClassifier


def export_graph(classifier: ScanClassifier) -> tuple[bytes, bytes]:
    """XML and weights, in float32, of the graph for any batch of films [N, size, size] of the network's own size.

    Raises `EngineError` for a network that cannot be exported or converted.
    """
    openvino = import_openvino()
    side = classifier.preprocess.size
    # two films: torch.export takes a batch of one for a constant
    films = torch.zeros((2, side, side), dtype=torch.uint8)
    try:
        program = torch.export.export(
            InferenceGraph(classifier.eval()), (films,), dynamic_shapes=({0: torch.export.Dim("films", min=1)},)
        )
        with _without_remarks():
            graph = openvino.convert_model(program)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise EngineError(f"OpenVINO cannot take this network: {first_line(error)}") from error
    with tempfile.TemporaryDirectory(prefix="rayscan-graph-") as folder:
        openvino.save_model(graph, Path(folder) / "graph.xml", compress_to_fp16=False)
        return (Path(folder) / "graph.xml").read_bytes(), (Path(folder) / "graph.bin").read_bytes()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep the decoder's tracebacks about operations this torch has no decomposition of out of the log.

    They go to the root logger by `logging.warning`, which gives it a handler for good when it has none.
    """
    root, handler = logging.getLogger(), logging.NullHandler()

    def is_other(record: logging.LogRecord) -> bool:
        return "decomp table" not in str(record.msg)

    root.addHandler(handler)
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)
        root.removeHandler(handler)
