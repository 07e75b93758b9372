"""How long a film takes on a machine: a matter of the network's architecture, measured before it is trained."""

import time
from typing import Final

import numpy as np

from models.engines.choice import CPU_BATCH, GPU_BATCH, EngineBuilder, probe_films
from models.engines.engine import EngineError
from models.engines.export import export_graph
from models.engines.machine import this_machine
from models.errors import InputError
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec

WARM_UP: Final = 2
"""Batches that are not timed: the first ones are slower."""
BATCHES: Final = 15
"""Batches that are timed."""


def latency_ms(spec: ModelSpec, *, device: str, threads: int) -> float:
    """Milliseconds a film on the engine this machine would score with, in batches: the median of `BATCHES`.

    The weights are random. The fastest engine there is on this machine counts, though a bundle may later be refused
    it: whether its precision suits a model shows only when the model is trained. `device` is torch's; OpenVINO takes
    `threads`. Raises `InputError` where no engine runs the network.
    """
    classifier = ScanClassifier(Preprocess(spec.preprocessing), build(spec)).eval()
    machine = this_machine(device)
    batch = GPU_BATCH if machine.has_gpu else CPU_BATCH
    try:
        graph = None if machine.has_gpu else export_graph(classifier)
    except EngineError:  # torch runs what OpenVINO cannot
        graph = None
    builder = EngineBuilder(
        lambda: classifier,
        graph,
        machine,
        size=spec.preprocessing.size,
        classes=len(spec.classes),
        batch=batch,
        threads=threads,
    )
    films = probe_films(batch, spec.preprocessing.film_size)
    for kind in machine.kinds():
        try:
            engine = builder.build(kind)
        except EngineError:
            continue
        spent = []
        for _ in range(WARM_UP + BATCHES):
            begun = time.perf_counter()
            engine(films)
            spent.append(time.perf_counter() - begun)
        return float(np.median(spent[WARM_UP:])) * 1000 / batch
    raise InputError(f"no engine of this machine runs {spec.name}; leave latency out of the objectives")
