"""All checks of the GPU paths, in one run: `python -m tests.gpu.run [--device cuda] [--small] [--json FILE]`.

Needs torch, timm, safetensors, scipy, scikit-learn and pillow, and neither Ray nor object storage, so that it runs on a
bare GPU machine. On a CPU it enters the same code; what takes a GPU is skipped. Exit code 1 if any check failed. Every
check is made, whatever the others say, within `--budget` seconds.
"""

import argparse
import logging
import platform
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where it is run as a file

import torch

from models.bundle import Bundle
from models.engines.machine import EngineKind, this_machine
from models.films import Films
from tests.gpu import engines, training
from tests.gpu.harness import Figures, Harness
from tests.gpu.material import LARGE, SMALL, Size, bundle_of, phantoms, trained


def environment(device: str, figures: Figures) -> None:
    """What this ran on."""
    figures["python"], figures["system"] = platform.python_version(), platform.platform()
    for name in ("torch", "torchvision", "timm", "numpy", "triton", "safetensors"):
        try:
            figures[name] = version(name)
        except PackageNotFoundError:
            figures[name] = None
    figures["engines"] = [kind.name for kind in this_machine(device).kinds()]
    if device == "cpu":
        return
    facts = torch.cuda.get_device_properties(torch.device(device))
    figures["gpu"], figures["GiB"] = facts.name, round(facts.total_memory / 2**30, 1)
    figures["compute capability"] = torch.cuda.get_device_capability(device)
    figures["cuda"], figures["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    figures["is_bf16_supported"] = torch.cuda.is_bf16_supported()
    query = ["nvidia-smi", "--query-gpu=driver_version,memory.used,clocks.sm", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    figures["driver, memory used, clock"] = told.stdout.strip() or told.stderr.strip()


class Made:
    """Films and bundles that the checks share; what could not be made fails the checks that want it."""

    def __init__(self, size: Size, device: str, folder: Path) -> None:
        self.size, self.device, self.folder = size, device, folder
        self.train: Films = phantoms(size.train, size.side, seed=1)
        self.val: Films = phantoms(size.val, size.side, seed=2)
        self.bundles: dict[str, Bundle] = {}

    def make_bundle(self, model: str, figures: Figures) -> None:
        fitted = trained(model, self.train, self.val, self.size, self.device)
        figures["auc"] = [round(report.val_auc, 3) for report in fitted.history]
        figures["seconds of epochs"] = [round(report.seconds, 2) for report in fitted.history]
        self.bundles[model] = bundle_of(fitted, self.train, self.val, self.folder / model)


def main(arguments: list[str] | None = None) -> int:
    """Make all checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small enough for two slow cores")
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--budget", type=float, default=470.0, help="seconds after which no check is begun")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    size, device = (SMALL if chosen.small else LARGE), chosen.device
    harness = Harness(chosen.json, chosen.budget)
    with tempfile.TemporaryDirectory(prefix="rayscan-gpu-") as folder:
        made = Made(size, device, Path(folder))
        run(harness, made, size, device)
    return harness.summary()


def run(harness: Harness, made: Made, size: Size, device: str) -> None:
    """The checks, what matters most first."""
    check = harness.check
    check("environment", partial(environment, device))
    for model in size.models:
        check(f"train {model} on phantoms", partial(made.make_bundle, model))
    for model, bundle in made.bundles.items():
        eager = partial(engines.correctness, bundle, made.val, device, _is_eager)
        check(f"eager engines, {model}", eager)
        check(f"TensorFloat-32, {model}", partial(engines.tensor_float, bundle, made.val, device))
    first = next(iter(made.bundles.values()), None)
    for kind in filter(_is_compiled, engines.machine_of(device).kinds()):
        if first is not None:
            check(kind.name, partial(engines.correctness, first, made.val, device, kind.__eq__))
    check("training against the CPU", partial(training.against_cpu, made.train, made.val, device, size))
    check("resumed", partial(training.resumed, made.train, made.val, device, size))
    check("synchronised normalisation", partial(training.synchronised, device, size))
    check("trials that share the device", partial(training.packed, made.train, made.val, device, size))
    if first is not None:
        check("agreement completed later", partial(engines.later_agreement, first, made.val, device))
    for name in size.recipes:
        check(f"epoch of {name}", partial(training.epoch, name, made.train, made.val, device, size))
    for model, bundle in made.bundles.items():
        check(f"films a second, {model}", partial(engines.speed, model, bundle, device, size, _is_eager))
    if first is not None:
        check("films a second, compiled", partial(engines.speed, size.models[0], first, device, size, _is_compiled))
        check("broken compiler", partial(engines.broken_compiler, first, device, size))
    check("two workers on one device", partial(training.group_of_two, made.train, made.val, device, size))


def _is_eager(kind: EngineKind) -> bool:
    return kind.engine == "torch-eager"


def _is_compiled(kind: EngineKind) -> bool:
    return kind.engine == "torch-compile"


if __name__ == "__main__":
    sys.exit(main())
