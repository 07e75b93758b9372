"""The checks of the GPU paths, made small on a CPU, where nothing is installed that a bare GPU machine lacks."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABSENT = ("boto3", "captum", "deltalake", "duckdb", "gdcm", "imagecodecs", "obstore", "openvino", "optuna", "pydicom")
BLOCKED = f"""
import runpy, sys
for name in ("ray", "typer", "rich", *{ABSENT!r}):
    sys.modules[name] = None
sys.argv = ["run", "--device", "cpu", "--small", "--budget", "900", "--json", sys.argv[1]]
runpy.run_module("tests.gpu.run", run_name="__main__")
"""


def test_every_check_passes_on_a_cpu_without_ray_or_storage(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    outcomes = {outcome["name"]: outcome for outcome in json.loads(file.read_text())}
    assert {outcome["status"] for outcome in outcomes.values()} == {"ok", "skipped"}
    assert outcomes["eager engines, cnn"]["figures"]["torch-eager-fp32-cpu"]["max dp"] <= 1e-4
    assert outcomes["resumed"]["figures"]["the same weights"] is True
    assert len(outcomes["trials that share the device"]["figures"]["together"]) == 2
    assert "torch-eager-fp16-cpu" in outcomes["agreement completed later"]["figures"]["agreements"]
