"""What an engine saves: CPU milliseconds for each film on one thread, three backbones at 224 pixels.

The engines take turns in one process and the best turn of each counts, so that another load on the machine falls on
all of them alike: read the ratios. How much bfloat16 saves depends on the CPU: AMX multiplies matrices of it in tiles,
AVX-512 only two numbers at a time where it took one of float32.
"""

import time
from collections.abc import Iterator

import pytest
import torch

from models.engines.allocator import keep_memory
from models.engines.choice import EngineBuilder, probe_films
from models.engines.export import export_graph
from models.engines.machine import cpu_flags, this_machine
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec

ROUNDS = 8
BATCH = 8
LEAST = {"amx_bf16": 4.0, "avx512_bf16": 2.0}
"""How many times less CPU time OpenVINO in bfloat16 must take than eager torch in float32, by what the CPU has."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.bench
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv3_large_100"])
def test_openvino_against_eager_torch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    keep_memory()
    spec = ModelSpec(name=name)
    machine = this_machine("cpu")
    classifier = ScanClassifier(Preprocess(spec.preprocessing), build(spec)).eval()
    builder = EngineBuilder(
        lambda: classifier, export_graph(classifier), machine, size=224, classes=2, batch=BATCH, threads=1
    )
    engines = {kind.name: builder.build(kind) for kind in machine.kinds()}
    films = probe_films(BATCH, spec.preprocessing.film_size)
    best = dict.fromkeys(engines, float("inf"))
    for turn in range(ROUNDS + 1):
        for engine_name, engine in engines.items():
            started = time.process_time()
            engine(films)
            if turn:  # the first is to warm up
                best[engine_name] = min(best[engine_name], (time.process_time() - started) / BATCH * 1e3)
    eager = best["torch-eager-fp32-cpu"]
    with capsys.disabled():
        print(f"\n{name} at 224, batch {BATCH}, one thread, best of {ROUNDS}")
        for engine_name, milliseconds in best.items():
            print(f"  {engine_name:22} {milliseconds:7.2f} CPU-ms a film  {eager / milliseconds:5.2f} x")
    least = max((LEAST[flag] for flag in LEAST if flag in cpu_flags()), default=None)
    if least is None:
        pytest.skip("bfloat16 is not native on this CPU")
    assert eager / best["openvino-bf16-cpu"] >= least
