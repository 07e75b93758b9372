"""A thousand heads on cached features: wall time, overhead a head, peak memory of all processes.

On synthetic features of as many films and numbers as the Kermany films give MobileNetV2 0.35 (4,447 and 785 films of
1,280), because what is measured is the search around the heads, and what a head costs at all. For real films,
`rayscan tune --probes 1000` logs the same figures.
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from models.films import Films
from models.spec import Preprocessing, Scalar
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import open_store
from tests.benchmarks.measured import machine, record
from tuning.search import probes
from tuning.spaces.domain import Domain
from tuning.spaces.space import SearchSpace
from tuning.spaces.space_file import read_space
from tuning.training.features import Features
from tuning.training.films import TrainingFilms

PROBES, WIDTH = 1000, 1280


class PeakMemory:
    """Of this process and all below it, looked at ten times a second; what processes share counts in each."""

    def __enter__(self) -> "PeakMemory":
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.1):
            self.most = max(self.most, sum(_memory(process) for process in [me, *me.children(recursive=True)]))


def _memory(process: psutil.Process) -> int:
    try:
        found: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return found


def made_up(count: int, rng: np.random.Generator) -> Features:
    """Synthetic features: six of the numbers separate the classes weakly."""
    labels = np.arange(count) % 2
    values = rng.standard_normal((count, WIDTH), dtype=np.float32)
    values[:, :6] += 0.8 * labels[:, None]
    return Features(values=values, labels=labels)


@pytest.mark.bench
@pytest.mark.usefixtures("ray_of_this_machine")
def test_a_thousand_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: dict[str, Scalar] = {"weights": "made-up"}
    default = read_space("default")
    space = SearchSpace(
        families=("mobilenetv2_035",),
        tables={"backbone": {"weights": Domain(choices=("made-up",))}, "probe": default.tables["probe"]},
    )
    kind = probes.FeatureKind(family="mobilenetv2_035", values=weights)
    rng = np.random.default_rng(0)
    sides = (ray.put(made_up(4447, rng)), ray.put(made_up(785, rng)))
    monkeypatch.setattr(probes, "_features", lambda *of: {kind.name: sides})
    films = Films(**dict.fromkeys(("pixels", "labels", "patients", "subtypes", "scan_ids"), np.empty(0)))
    info = DatasetInfo(size=224, preprocessing=Preprocessing(), fingerprint="", counts={}, parts={})
    searched = TrainingFilms(uri="", info=info, train=films, val=films)
    with PeakMemory() as memory:
        began = time.monotonic()
        found = probes.run_probes(
            space, [], searched, probes=PROBES, store=open_store(str(tmp_path)), seed=0, deadline=float("inf")
        )
        wall = time.monotonic() - began
    fitting = sum(one.seconds for one in found)
    cores = os.cpu_count() or 1
    overhead = (wall * cores - fitting) / PROBES
    text = (
        f"| heads | wall, s | a minute | fitting a head, s | overhead a head, s | peak memory, GiB |\n"
        f"|---|---|---|---|---|---|\n"
        f"| {len(found)} | {wall:.0f} | {60 * len(found) / wall:.0f} | {fitting / PROBES:.3f} | {overhead:.3f} |"
        f" {memory.most / 2**30:.2f} |"
    )
    print(f"\n{machine()}\n{text}")
    record("probes", text)
    assert len(found) == PROBES
    assert 60 * len(found) / wall >= 100
