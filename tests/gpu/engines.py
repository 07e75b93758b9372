"""Checks of the engines: each precision, eager and compiled, against float32 on the CPU; speed; agreement; fallback."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

import models.engines.torch_engine
from models.bundle import AGREEMENTS, Bundle, load_bundle
from models.engines.agreement import agree, compare
from models.engines.choice import CPU_BATCH, GPU_BATCH, EngineBuilder, load_engine
from models.engines.engine import Engine, EngineError, Inference
from models.engines.machine import EngineKind, Machine, this_machine
from models.films import Films
from tests.gpu.harness import Figures, SkippedError, require
from tests.gpu.material import Size

ROUNDING = 1e-4
"""What float32 on another device may move a probability by."""
MEAN = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2}
"""What each precision may move probabilities by on average: far more than any sound engine does."""


class CpuLikeGpu(Machine):
    """A CPU with the engines of a GPU, for a run without one. Compiling is left out: it takes half a minute there."""

    @property
    def has_gpu(self) -> bool:
        return True

    def kinds(self) -> tuple[EngineKind, ...]:
        return tuple(
            EngineKind(engine="torch-eager", precision=precision, device="cpu")  # type: ignore[arg-type]
            for precision in ("fp16", "bf16", "fp32")
        )


def machine_of(device: str) -> Machine:
    """The machine whose engines are checked."""
    if device != "cpu":
        return this_machine(device)
    return CpuLikeGpu(device="cpu", native_bf16=True, native_fp16=True, openvino=None, torch=this_machine("cpu").torch)


def builder_of(bundle: Bundle, machine: Machine, batch: int | None = None) -> EngineBuilder:
    return EngineBuilder(
        bundle.classifier,
        None,
        machine,
        size=bundle.spec.preprocessing.size,
        classes=len(bundle.spec.classes),
        batch=batch or (GPU_BATCH if machine.has_gpu else CPU_BATCH),
    )


def reference_of(bundle: Bundle, val: Films) -> Inference:
    """Float32 on the CPU."""
    kind = EngineKind(engine="torch-eager", precision="fp32", device="cpu")
    return infer(builder_of(bundle, this_machine("cpu")).build(kind), val.pixels)


def infer(engine: Engine, pixels: npt.NDArray[np.uint8], batch: int = 64) -> Inference:
    parts = [engine(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return Inference(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def log_odds(found: Inference) -> npt.NDArray[np.float64]:
    disease = np.clip(1 - found.probabilities[:, 0].astype(np.float64), 1e-6, 1 - 1e-6)
    odds: npt.NDArray[np.float64] = np.log(disease / (1 - disease))
    return odds


def correctness(bundle: Bundle, val: Films, device: str, kinds: Callable[[EngineKind], bool], figures: Figures) -> None:
    """Each engine against the CPU's float32: differences, and films that change sides at each operating point."""
    machine = machine_of(device)
    expected = reference_of(bundle, val)
    figures["spread of log odds"] = round(float(log_odds(expected).std()), 3)
    faults = []
    for kind in filter(kinds, machine.kinds()):
        started = time.perf_counter()
        try:
            engine = builder_of(bundle, machine).build(kind)
        except EngineError as error:
            figures[kind.name] = f"not built: {error}"
            faults.append(f"{kind.name}: {error}")
            continue
        built = time.perf_counter() - started
        found = infer(engine, val.pixels)
        apart = compare(expected, found, val.labels, bundle.calibration.operating_points, version="")
        moved = np.abs(log_odds(found) - log_odds(expected))
        alone = np.abs(infer(engine, val.pixels[:3], batch=1).probabilities - found.probabilities[:3]).max()
        figures[kind.name] = {
            "built in s": round(built, 1),
            "max dp": apart.max_dp,
            "mean dp": apart.mean_dp,
            "max d log odds": float(moved.max()),
            "rms d log odds in SD": float(np.sqrt((moved**2).mean()) / log_odds(expected).std()),
            "flips": {name: at.films for name, at in apart.flips.items()},
            "distance moved": apart.mean_distance_change,
            "allowed": list(apart.reasons) or True,
            "one film or a batch, dp": float(alone),
        }
        if apart.mean_dp is None or not np.isfinite(found.probabilities).all():
            faults.append(f"{kind.name} gives no numbers")
        elif apart.mean_dp > MEAN[kind.precision]:
            faults.append(f"{kind.name} moves probabilities by {apart.mean_dp:.2g} on average")
        if kind.precision == "fp32" and not (apart.max_dp or 0) <= ROUNDING:
            faults.append(f"{kind.name} is not exact: {apart.max_dp}")
    require(not faults, "; ".join(faults))


def tensor_float(bundle: Bundle, val: Films, device: str, figures: Figures) -> None:
    """What TensorFloat-32 would do to the same network, and that the float32 engine does not use it."""
    figures["torch's own state"] = {
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
    }
    expected = reference_of(bundle, val)
    machine = machine_of(device)
    kind = next(kind for kind in machine.kinds() if (kind.engine, kind.precision) == ("torch-eager", "fp32"))
    exact = np.abs(infer(builder_of(bundle, machine).build(kind), val.pixels).probabilities - expected.probabilities)
    with inexact():
        loose = np.abs(
            infer(builder_of(bundle, machine).build(kind), val.pixels).probabilities - expected.probabilities
        )
        figures["max dp"] = {"exact": float(exact.max()), "with TF32": float(loose.max())}
    require(float(exact.max()) <= ROUNDING, f"fp32 is {exact.max():.2g} away from the CPU's")


class inexact:  # noqa: N801 - used as a context manager
    """Engines in float32 with TensorFloat-32, which they refuse otherwise: for comparison only."""

    def __enter__(self) -> None:
        self.patch = mock.patch.object(models.engines.torch_engine, "exact_float32", nullcontext)
        self.patch.start()
        torch.set_float32_matmul_precision("high")

    def __exit__(self, *error: object) -> None:
        torch.set_float32_matmul_precision("highest")
        self.patch.stop()


def later_agreement(bundle: Bundle, val: Films, device: str, figures: Figures) -> None:
    """A bundle that was made on a CPU scores in eager float32; compared here, it may be scored by faster engines."""
    machine = machine_of(device)
    before = load_engine(bundle, machine=machine)
    figures["before"] = before.choice.name
    require(before.choice.name.startswith("torch-eager-fp32"), f"{before.choice.name} was never compared")
    agreements = agree(bundle, val, machine)
    figures["agreements"] = {name: found.reasons or "allowed" for name, found in agreements.items()}
    folder = bundle.folder / AGREEMENTS
    folder.mkdir(exist_ok=True)
    engines = {name: found.to_json() for name, found in agreements.items()}
    (folder / "20260101T000000Z-0.json").write_text(json.dumps({"model_id": bundle.model_id, "engines": engines}))
    later = load_bundle(bundle.folder)
    require(later.model_id == bundle.model_id, "the identity of the bundle changed")
    started = time.perf_counter()
    after = load_engine(later, machine=machine)
    figures["after"] = after.choice.to_json()
    figures["loaded in s"] = round(time.perf_counter() - started, 1)
    allowed = [name for name, found in agreements.items() if not found.reasons]
    require(not allowed or len(after.choice.films_per_second) > 1, "no engine that agrees was offered")


BROKEN = """
import sys, logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from pathlib import Path
from models.bundle import load_bundle
from models.engines.choice import load_engine
from tests.gpu.engines import allowing
bundle, machine = allowing(Path(sys.argv[1]), sys.argv[2])
engine = load_engine(bundle, machine=machine, batch=8)
print(engine.choice.name, "|", engine.choice.reason)
"""


def allowing(folder: Path, device: str) -> tuple[Bundle, Machine]:
    """A bundle that a compiled engine may run, and a machine that has one."""
    from dataclasses import replace

    machine = machine_of(device)
    if device == "cpu":

        class Compiles(CpuLikeGpu):
            def kinds(self) -> tuple[EngineKind, ...]:
                return (EngineKind(engine="torch-compile", precision="fp32", device="cpu"), *super().kinds())

        machine = Compiles(**vars(machine))
    name = next(kind.name for kind in machine.kinds() if (kind.engine, kind.precision) == ("torch-compile", "fp32"))
    entry = {"allowed": True, "reasons": [], "max_dp": 0.0, "version": f"torch {machine.torch}"}
    return replace(load_bundle(folder), evaluation={"val": {"engines": {name: entry}}}, later=()), machine


def broken_compiler(bundle: Bundle, device: str, size: Size, figures: Figures) -> None:
    """A compiler that fails at the first batch costs one line and that engine, nothing else."""
    if size.small:
        raise SkippedError("tests/models/engines/test_torch_engine.py does it on a CPU")
    with tempfile.TemporaryDirectory() as caches:
        gone = "/nonexistent/compiler"
        environment = {
            **os.environ,
            **dict.fromkeys(("CC", "CXX", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), gone),
            "TRITON_CACHE_DIR": f"{caches}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
        }
        done = subprocess.run(
            [sys.executable, "-c", BROKEN, str(bundle.folder), device],
            env=environment,
            capture_output=True,
            text=True,
            timeout=140,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    figures["log"] = [line[:200] for line in done.stderr.splitlines() if "left out" in line]
    figures["choice"] = done.stdout.strip()[:300]
    require(done.returncode == 0, f"loading died: {done.stderr[-600:]}")
    if "torch-compile-fp32" in done.stdout and "torch.compile failed" not in done.stdout:
        raise SkippedError("this torch compiled without the compiler that was taken from it")
    require(done.stdout.startswith("torch-eager-fp32"), f"it runs on {done.stdout[:100]}")
    require(len(figures["log"]) == 1, "the log does not say it in one line")


def speed(
    name: str, bundle: Bundle, device: str, size: Size, kinds: Callable[[EngineKind], bool], figures: Figures
) -> None:
    """Films a second of inference, with the way from memory and back, by engine and batch."""
    machine = machine_of(device)
    figures["model"], figures["films of side"] = name, bundle.spec.preprocessing.film_size
    films = np.random.default_rng(0).integers(0, 255, (max(size.batches), size.side, size.side), dtype=np.uint8)
    for kind in filter(kinds, machine.kinds()):
        compiled = kind.engine == "torch-compile"
        batches = tuple(batch for batch in size.batches if batch == 64) if compiled else size.batches
        for state in ("exact", "TF32") if kind.precision == "fp32" and device != "cpu" and not compiled else ("",):
            with inexact() if state == "TF32" else nullcontext():
                engine = builder_of(bundle, machine, batch=64).build(kind)
                rates: dict[int, Any] = {
                    batch: round(films_per_second(engine, films[:batch], size.seconds)) for batch in batches
                }
            figures[f"{kind.name} {state}".strip()] = rates


def films_per_second(engine: Engine, films: npt.NDArray[np.uint8], seconds: float) -> float:
    for _ in range(3):
        engine(films)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine(films)
        done += len(films)
    return done / (time.perf_counter() - started)
