"""What training does on GPUs only, entered on a CPU: what asks the GPU is a value."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tuning.training.learner
from models.errors import RayscanError
from tests.models.synthetic import blob_films, small_spec
from tuning.training.gpu import allowed_bytes, free_bytes, release, share_gpu
from tuning.training.learner import Learner, precision
from tuning.training.loop import EpochReport, EpochState, TrainSettings, fit
from tuning.training.shelf import Shelf, stays
from tuning.training.workers import ALONE

TRAIN, VAL = blob_films(96), blob_films(48, seed=1)
QUICK = TrainSettings(epochs=2, batch_size=16, device="cpu", threads=1, optimiser="sgd", learning_rate=1e-2)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("free", "reserved", "cap", "expected"), [(70, 0, 1.0, 70), (70, 0, 0.25, 20), (10, 5, 0.25, 10), (70, 30, 0.25, 0)]
)
def test_a_trial_may_take_what_is_free_up_to_its_share(free: int, reserved: int, cap: float, expected: int) -> None:
    assert allowed_bytes(free, 80, reserved, cap) == expected


def test_a_cpu_has_no_memory_to_share() -> None:
    share_gpu(CPU, 0.25)
    release("cpu")
    assert free_bytes(CPU) == 0
    assert not stays(1, 0)


def test_films_stay_where_they_take_a_quarter_at_most() -> None:
    assert stays(25, 100)
    assert not stays(26, 100)


def test_films_that_stay_are_given_out_as_those_that_do_not() -> None:
    pixels = blob_films(1300, size=16).pixels  # of more than two chunks
    pixels.flags.writeable = False
    kept, moved = Shelf(pixels, CPU, stay=True), Shelf(pixels, CPU, stay=False)
    index = np.random.default_rng(0).integers(0, len(pixels), 50)
    for shelf in (kept, moved):
        assert len(shelf) == 1300
        assert np.array_equal(shelf.take(index, torch.from_numpy(index)).numpy(), pixels[index])
        assert np.array_equal(shelf.between(700, 731).numpy(), pixels[700:731])


def test_films_that_stay_on_the_device_train_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = small_spec(), replace(QUICK, augment=0.5, mixup=0.3)
    moved = fit(spec, TRAIN, VAL, settings)
    monkeypatch.setattr(tuning.training.learner, "free_bytes", lambda device: 1 << 30)
    kept = fit(spec, TRAIN, VAL, settings)
    assert all(torch.equal(value, kept.state_dict[name]) for name, value in moved.state_dict.items())


class Reads(TorchDispatchMode):
    """Counts how often a number is read from the device, which there waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_an_epoch_reads_no_number_at_its_steps() -> None:
    def reads(batch_size: int) -> int:
        settings = replace(QUICK, batch_size=batch_size, accumulate=2, augment=0.0, ema=0.9, class_weighting="balanced")
        learner = Learner(small_spec(), settings, TRAIN, VAL.pixels, device=CPU, weights=None, workers=ALONE)
        learner.train_epoch(1)
        with Reads() as seen:
            learner.train_epoch(2)
        return seen.count

    assert reads(4) == reads(24) <= 2


@pytest.mark.parametrize(("capability", "lower"), [(None, False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_steps_are_in_bfloat16_where_the_gpu_has_it(capability: tuple[int, int] | None, lower: bool) -> None:
    weights = torch.ones(2, 2)
    with precision(CPU, capability):
        assert (weights @ weights).dtype == (torch.bfloat16 if lower else torch.float32)


def test_validation_films_are_scored_in_exact_float32() -> None:
    """Thresholds are locked on them; training steps may be in TensorFloat-32."""
    settings = replace(QUICK, augment=0.0)
    learner = Learner(small_spec(), settings, TRAIN, VAL.pixels, device=CPU, weights=None, workers=ALONE)
    seen: list[bool] = []
    learner.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    learner.train_epoch(1)
    assert set(seen) == {True}
    seen.clear()
    learner.evaluate()
    assert set(seen) == {False}


def test_a_gpu_that_is_too_small_is_told_in_one_line() -> None:
    """A search records it as the trial's failure; a crash would be tried three times."""

    def out_of_memory(report: EpochReport, state: EpochState) -> bool:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")

    with pytest.raises(RayscanError, match=r"training of cnn does not fit the GPU.*lower the batch size \(16\)"):
        fit(small_spec(), TRAIN, VAL, QUICK, out_of_memory)
