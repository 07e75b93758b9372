"""Checks of training: against the CPU, epochs of the recipes, trials that share a GPU, normalisation of a group."""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from models.films import Films
from models.networks.float32 import exact_float32
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from tests.gpu.harness import Figures, SkippedError, require
from tests.gpu.material import Size, repeated, spec_of
from tuning.training.checkpoint import Checkpoint
from tuning.training.learner import Learner
from tuning.training.loop import EpochReport, EpochState, Fitted, TrainSettings, fit
from tuning.training.workers import ALONE, Workers

ROOT = Path(__file__).parents[2]
LOSS = 0.15
"""What the loss of an epoch on a GPU, in bfloat16, may be away from the CPU's in float32: a share of the larger, which
counts as 0.2 at least."""
AUC = 0.05


def against_cpu(train: Films, val: Films, device: str, size: Size, figures: Figures) -> None:
    """The same training on both: plain SGD, no augmentation, so that only the arithmetic differs."""
    spec = spec_of("cnn", size.side)
    settings = TrainSettings(
        epochs=min(size.epochs, 5),
        batch_size=32,
        learning_rate=0.02,
        augment=0.0,
        optimiser="sgd",
        device="cpu",
        seed=3,
    )
    on_cpu, here = fit(spec, train, val, settings), fit(spec, train, val, replace(settings, device=device))
    again = fit(spec, train, val, replace(settings, device=device))
    for name, fitted in (("cpu", on_cpu), (device, here)):
        figures[f"{name} loss"] = [round(report.train_loss, 4) for report in fitted.history]
        figures[f"{name} auc"] = [round(report.val_auc, 4) for report in fitted.history]
    figures["the same weights twice here"] = _same(here, again)
    apart = max(
        abs(a.train_loss - b.train_loss) / max(a.train_loss, b.train_loss, 0.2)
        for a, b in zip(on_cpu.history, here.history, strict=True)
    )
    figures["largest difference of loss"] = round(apart, 4)
    require(apart <= LOSS, f"an epoch's loss is {apart:.1%} away from the CPU's")
    require(abs(on_cpu.best.val_auc - here.best.val_auc) <= AUC, "the AUC is another than the CPU's")


def _same(first: Fitted, second: Fitted) -> bool:
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


def resumed(train: Films, val: Films, device: str, size: Size, figures: Figures) -> None:
    """A training that goes on from its checkpoint, on this device; the same weights are promised on a CPU only."""
    settings = TrainSettings(epochs=3, batch_size=32, augment=0.5, ema=0.9, device=device, seed=4)
    spec = spec_of("cnn", size.side)
    files: list[bytes] = []

    def keep(report: EpochReport, state: EpochState) -> bool:
        files.append(state.checkpoint().to_bytes())
        return True

    whole = fit(spec, train, val, settings, keep)
    later = fit(spec, train, val, settings, resume=Checkpoint.from_bytes(files[0]))
    figures["the same weights"] = _same(whole, later)
    figures["losses"] = [[round(r.train_loss, 5) for r in fitted.history] for fitted in (whole, later)]
    apart = max(abs(a.val_loss - b.val_loss) for a, b in zip(whole.history, later.history, strict=True))
    figures["largest difference of validation loss"] = apart
    require(apart < 0.05, "it went on as another training")
    require(device != "cpu" or _same(whole, later), "on a CPU the weights must be the same")


def recipe_of(name: str, side: int) -> tuple[ModelSpec, TrainSettings]:
    """A shipped recipe at this size, from random weights; read without the parser, which needs object storage."""
    table = tomllib.loads((ROOT / f"tuning/recipes/{name}.toml").read_text())
    preprocessing = Preprocessing(size=side, normalise=table.get("normalise", "film"))
    spec = ModelSpec(name=table["model"], parameters=table.get("parameters", {}), preprocessing=preprocessing)
    return spec, TrainSettings(**table.get("training", {}))


def epoch(name: str, films: Films, val: Films, device: str, size: Size, figures: Figures) -> None:
    """Seconds of the second epoch of a recipe, and its memory; synchronisations of a few steps."""
    spec, settings = recipe_of(name, size.side)
    settings = replace(settings, epochs=2, device=device, seed=0)
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        fitted = fit(spec, repeated(films, size.epoch_films), val, settings)
    except torch.OutOfMemoryError as error:
        raise SkippedError(f"{name} does not fit this GPU: {error}") from error
    seconds = fitted.history[-1].seconds
    figures["model"], figures["batch"] = spec.name, settings.batch_size
    figures["films"], figures["validation films"] = size.epoch_films, len(val)
    figures["seconds of epochs"] = [round(report.seconds, 2) for report in fitted.history]
    figures["films a second"] = round((size.epoch_films + len(val)) / seconds)
    if on_gpu:
        figures["peak MB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        figures["synchronisations in 8 steps"] = synchronisations(spec, settings, films, val, device)


def synchronisations(spec: ModelSpec, settings: TrainSettings, films: Films, val: Films, device: str) -> int:
    """How often an epoch of eight steps waits for the GPU, as torch itself counts."""
    few = repeated(films, settings.batch_size * 8)
    learner = Learner(spec, settings, few, val.pixels, device=torch.device(device), weights=None, workers=ALONE)
    learner.train_epoch(1)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            learner.train_epoch(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def packed(train: Films, val: Films, device: str, size: Size, figures: Figures) -> None:
    """Small trials in processes of their own on one device: memory of each, and what packing gains."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "films.npz"
        np.savez(file, train=train.pixels, train_labels=train.labels, val=val.pixels, val_labels=val.labels)
        alone = _together(1, file, device, size)
        shared = _together(size.packed, file, device, size)
    figures["alone"] = alone[0]
    figures["together"] = shared
    require(all("error" not in trial for trial in [*alone, *shared]), "a trial failed")
    slowest, single = max(trial["seconds"] for trial in shared), alone[0]["seconds"]
    figures["trials"] = size.packed
    figures["times as many trials a second as one after the other"] = round(size.packed * single / slowest, 2)
    figures["most MB of a trial"] = max(trial.get("reserved MB", 0) for trial in shared)


def _together(count: int, file: Path, device: str, size: Size) -> list[dict[str, Any]]:
    """`count` trials that begin together; what each tells."""
    command = [sys.executable, "-m", "tests.gpu.packed", str(file), device, str(size.packed), str(size.side)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    told = []
    try:
        for process in running:
            out, _ = process.communicate(timeout=120)
            lines = out.strip().splitlines()
            told.append(json.loads(lines[-1]) if lines else {"error": f"exit code {process.returncode}"})
    finally:
        for process in running:
            process.kill()
    return told


def synchronised(device: str, size: Size, figures: Figures) -> None:
    """Converted for a group, a network computes what it did: forwards, backwards and in its statistics."""
    backend = "nccl" if device != "cpu" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend, f"file://{folder}/join", rank=0, world_size=1)
        try:
            for name in ("cnn", "mobilenetv2_035", "resnet18")[: 2 if size.small else 3]:
                figures[name] = _converted(name, device, size)
        finally:
            torch.distributed.destroy_process_group()
    worst = max(value for found in figures.values() for value in found.values())
    require(worst < 1e-2, f"it moved by {worst:.2g}")


@exact_float32()
def _converted(name: str, device: str, size: Size) -> dict[str, float]:
    """Largest differences that the conversion makes, relative to the largest value."""
    here = torch.device(device)
    side = max(32, size.side // 2)
    spec = ModelSpec(name=name, preprocessing=Preprocessing(size=side))
    found = []
    films = torch.randn(8, 1, side, side, generator=torch.Generator().manual_seed(1)).to(here)
    for workers in (ALONE, Workers(rank=0, count=2)):
        torch.manual_seed(0)
        # converted as on a GPU; torch has synchronised normalisation in training on GPUs only
        network = workers.prepare(build(spec), torch.device("cuda")).to(here)
        network.train(here.type == "cuda")
        out = network(films)
        out.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        statistics = torch.cat([b.float().flatten() for b in network.buffers()])
        found.append({"output": out.detach(), "gradients": gradients, "statistics": statistics})
    before, after = found
    return {
        key: float((after[key] - before[key]).abs().max() / before[key].abs().max().clamp_min(1e-6)) for key in before
    }


def group_of_two(train: Films, val: Films, device: str, size: Size, figures: Figures) -> None:
    """Two processes on one device, joined by gloo (nccl wants a GPU for each), train what one would."""
    if size.small:
        raise SkippedError("tests/tuning/training/test_workers.py does it on a CPU")
    settings = TrainSettings(
        epochs=2, batch_size=32, learning_rate=0.02, augment=0.0, optimiser="sgd", device=device, seed=5
    )
    spec = ModelSpec(name="mlp", parameters={"dropout": 0.0}, preprocessing=Preprocessing(size=size.side))
    one = fit(spec, train, val, settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "films.npz"
        np.savez(file, train=train.pixels, train_labels=train.labels, val=val.pixels, val_labels=val.labels)
        command = [sys.executable, "-m", "tests.gpu.group", str(file), device, str(size.side), f"{folder}/join"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        running = [
            subprocess.Popen(
                [*command, str(rank)],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            told = [process.communicate(timeout=100) for process in running]
        finally:
            for process in running:
                process.kill()
    if any(process.returncode for process in running):
        last = told[0][1].strip().splitlines()[-1:]
        if any(words in told[0][1] for words in ("gloo", "Gloo", "not implemented", "unsupported")):
            raise SkippedError(f"gloo does not join processes on this device: {last}")
        raise AssertionError(f"the group failed: {told[0][1][-500:]}")
    losses = json.loads(told[0][0].strip().splitlines()[-1])
    figures["one"], figures["two"] = [report.train_loss for report in one.history], losses
    apart = max(abs(a - b) / max(a, b) for a, b in zip(figures["one"], losses, strict=True))
    require(apart < 0.05, f"the losses are {apart:.1%} apart")
