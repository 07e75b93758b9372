"""Archives of a few dozen files, as folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.capacity import Capacity, NodeType
from pipelines.ingest import inspect as inspecting
from pipelines.ingest import prepare
from pipelines.shards import Stage
from tests.pipelines.decoding.films import encode, ramp, write


def _jpeg(number: int, quality: int = 90) -> bytes:
    noise = np.random.default_rng(number).integers(0, 20, ramp().shape, dtype=np.uint8)
    return encode(ramp() + noise, "jpeg", quality=quality)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Kaggle's layout: 30 normal and 40 ill patients of two films each in train, five of each in test, junk beside."""
    files = {}
    for i in range(30):
        files[f"train/NORMAL/IM-{i:04d}-0001.jpeg"] = _jpeg(i)
        files[f"train/NORMAL/IM-{i:04d}-0001-0002.jpeg"] = _jpeg(1000 + i)
    for i in range(40):
        kind = "bacteria" if i % 2 else "virus"
        for j in range(2):
            files[f"{'val' if i == 0 else 'train'}/PNEUMONIA/person{i}_{kind}_{2 * i + j}.jpeg"] = _jpeg(
                2000 + 2 * i + j
            )
    for i in range(5):
        files[f"test/NORMAL/NORMAL2-IM-{i:04d}-0001.jpeg"] = _jpeg(3000 + i)
        files[f"test/PNEUMONIA/person{100 + i}_virus_{i}.jpeg"] = _jpeg(4000 + i)
    # This patient of train has a film in test too.
    files["test/PNEUMONIA/person1_bacteria_999.jpeg"] = _jpeg(5000)
    junk = {".DS_Store": b"x", "README.md": b"# films", "train/Thumbs.db": b"x", "notes.txt": b"x", "DICOMDIR": b"x"}
    return write(tmp_path / "archive", files | junk)


def _run_here(_: str, shards: Sequence[dict[str, Any]], stage: Stage) -> Iterator[dict[str, Any]]:
    assert stage.actors >= 1
    worker = stage.actor(**stage.settings)
    for shard in reversed(shards):
        answer = worker({name: np.array([value]) for name, value in shard.items()})
        yield {name: values[0] for name, values in answer.items()}


@pytest.fixture(autouse=True)
def _inspect_in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--inspect` without Ray, which is slow to start; except where a test asks for it."""
    if "ray_session" not in request.fixturenames:
        monkeypatch.setattr(inspecting, "run_shards", _run_here)
        monkeypatch.setattr(inspecting, "cluster_capacity", lambda: Capacity(nodes=(NodeType(cpus=2),)))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor called here, shard after shard: most of what prepare does needs no Ray, which is slow to start."""
    monkeypatch.setattr(prepare, "run_shards", _run_here)
    monkeypatch.setattr(prepare, "cluster_capacity", lambda: Capacity(nodes=(NodeType(cpus=2),)))
