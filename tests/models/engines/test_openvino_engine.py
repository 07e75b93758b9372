"""The exported graph: it stands in the bundle, needs no torch, and reports nothing to anyone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.bundle import GRAPH
from models.engines.choice import load_engine
from models.engines.engine import EngineError
from models.engines.export import export_graph
from models.errors import BundleError
from models.spec import ModelSpec, Preprocessing
from tests.models.engines.test_choice import (
    FILMS,
    HERE,
    OPENVINO_FP32,
    PLAIN,
    agreements,
    builder,
    bundle,
    classifier,
    entry,
)
from tests.models.synthetic import small_spec

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", GRAPH)
def test_a_changed_graph_is_refused(tmp_path: Path, name: str) -> None:
    made = bundle(tmp_path, spec=small_spec("mlp"))
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed after the bundle was made"):
        load_engine(made, machine=HERE)


def test_a_network_without_a_graph_is_left_to_torch(tmp_path: Path) -> None:
    made = bundle(tmp_path, agreements(openvino_fp32_cpu=entry(allowed=False)), spec=small_spec("mlp"))
    assert load_engine(made, machine=HERE).choice.engine == "torch-eager"


def test_export_failures_are_one_line() -> None:
    broken = classifier(small_spec())
    broken.network.forward = lambda x: x if x.sum() > 0 else -x  # type: ignore[assignment]
    broken.familiarity = None
    with pytest.raises(EngineError, match="OpenVINO cannot take this network") as caught:
        export_graph(broken)
    assert "\n" not in str(caught.value)


def test_scoring_by_openvino_imports_no_torch_and_reports_to_nobody(tmp_path: Path) -> None:
    """Torch takes seconds. And left alone, `import openvino` leaves an identifier at home and reports itself."""
    made = bundle(tmp_path / "bundle", spec=small_spec("mlp"))
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path; import numpy as np\n"
        "from models.bundle import load_bundle; from models.engines.choice import load_engine\n"
        f"bundle = load_bundle(Path({str(made.folder)!r}))\n"
        f"bundle = replace(bundle, evaluation={agreements(openvino_fp32_cpu=entry())!r})\n"
        "engine = load_engine(bundle, device='cpu', threads=1)\n"
        "assert engine.name == 'openvino-fp32-cpu', engine.name\n"
        "assert engine(np.zeros((3, 32, 32), np.uint8)).probabilities.shape == (3, 2)\n"
        "assert 'openvino' in sys.modules and 'torch' not in sys.modules and 'timm' not in sys.modules\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)  # it would silence the report by itself
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT, timeout=120)
    assert not (tmp_path / "intel").exists()


def test_models_trained_below_the_films_size_are_shrunk_bit_for_bit() -> None:
    spec = ModelSpec(name="mlp", preprocessing=Preprocessing(size=16, decoded_size=32, normalise="unit"))
    made = builder(spec, batch=4)
    found = made.build(OPENVINO_FP32)(FILMS.pixels)
    reference = builder(spec, PLAIN, batch=4).build(PLAIN.kinds()[0])(FILMS.pixels)
    assert np.abs(found.probabilities - reference.probabilities).max() <= 1e-5
