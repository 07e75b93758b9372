from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from models.errors import InputError
from models.spec import ModelSpec
from tests.models.synthetic import blob_films, small_spec
from tuning.training.checkpoint import FORMAT, Checkpoint
from tuning.training.loop import EpochReport, EpochState, Fitted, TrainSettings, fit

TRAIN, VAL = blob_films(64), blob_films(32, seed=1)
CNN = small_spec("cnn", depth=2, width=8, dropout=0.2)
BASE = TrainSettings(epochs=4, batch_size=16, device="cpu", threads=1, augment=1.0, ema=0.95, mixup=0.4)


class Keeper:
    """Keeps the checkpoint of each epoch as a file's bytes, and stops training after one of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.files: list[bytes] = []
        self.stop_after = stop_after

    def __call__(self, report: EpochReport, state: EpochState) -> bool:
        self.files.append(state.checkpoint().to_bytes())
        return report.epoch != self.stop_after


def broken_and_whole(
    spec: ModelSpec, settings: TrainSettings, *, stop_after: int = 2
) -> tuple[tuple[Fitted, bytes], tuple[Fitted, bytes]]:
    """What a resumed and an unbroken training come to, and their last checkpoints."""
    unbroken = Keeper()
    whole = fit(spec, TRAIN, VAL, settings, unbroken)
    first, second = Keeper(stop_after), Keeper()
    fit(spec, TRAIN, VAL, settings, first)
    torch.rand(100)  # what the process did meanwhile must not matter
    resumed = fit(spec, TRAIN, VAL, settings, second, resume=Checkpoint.from_bytes(first.files[-1]))
    return (resumed, second.files[-1]), (whole, unbroken.files[-1])


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (CNN, {}),
        (CNN, {"optimiser": "sgd", "cutmix": 1.0, "accumulate": 2}),
        (CNN, {"optimiser": "rmsprop", "ema": 0.0, "operations": 4, "schedule": "cosine"}),
        (CNN, {"optimiser": "nadam", "sampling": "balanced", "mixup": 0.0}),
        (CNN, {"unfreeze_every": 1, "frozen_groups": 1, "rate_decay": 0.5}),
        (small_spec("mlp", width=16, dropout=0.3), {"loss": "focal"}),
        (small_spec("mobilenetv2_035", drop_path_rate=0.2), {"epochs": 3}),
    ],
    ids=["adamw", "sgd", "rmsprop", "nadam", "unfreezing", "mlp", "mobilenet"],
)
def test_a_resumed_training_ends_as_an_unbroken_one_bit_for_bit(spec: ModelSpec, changes: dict[str, Any]) -> None:
    (resumed, last), (whole, expected) = broken_and_whole(spec, replace(BASE, **changes))
    assert all(torch.equal(value, resumed.state_dict[name]) for name, value in whole.state_dict.items())
    assert np.array_equal(resumed.val_logits, whole.val_logits)
    strip = [replace(report, seconds=0) for report in resumed.history]
    assert strip == [replace(report, seconds=0) for report in whole.history]
    ours, theirs = Checkpoint.from_bytes(last), Checkpoint.from_bytes(expected)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name


def test_a_checkpoint_is_a_file_and_back() -> None:
    keeper = Keeper(1)
    fit(CNN, TRAIN, VAL, BASE, keeper)
    checkpoint = Checkpoint.from_bytes(keeper.files[0])
    assert checkpoint.epoch == 1
    again = Checkpoint.from_bytes(checkpoint.to_bytes())
    assert again.facts == checkpoint.facts
    assert all(torch.equal(value, again.tensors[name]) for name, value in checkpoint.tensors.items())
    assert {name.partition("/")[0] for name in again.tensors} == {
        "network",
        "average",
        "best",
        "best_logits",
        "optimiser",
        "generator",
    }


def test_a_finished_training_resumes_to_what_it_was() -> None:
    settings = replace(BASE, epochs=2)
    keeper = Keeper()
    whole = fit(CNN, TRAIN, VAL, settings, keeper)
    again = fit(CNN, TRAIN, VAL, settings, resume=Checkpoint.from_bytes(keeper.files[-1]))
    assert again.history == whole.history
    assert all(torch.equal(value, again.state_dict[name]) for name, value in whole.state_dict.items())
    assert again.seconds >= sum(report.seconds for report in whole.history)


def test_majority_resumes_too() -> None:
    keeper = Keeper()
    whole = fit(small_spec("majority"), TRAIN, VAL, BASE, keeper)
    again = fit(small_spec("majority"), TRAIN, VAL, BASE, resume=Checkpoint.from_bytes(keeper.files[-1]))
    assert again.history == whole.history
    assert np.array_equal(again.val_logits, whole.val_logits)


def test_a_checkpoint_of_another_training_is_refused() -> None:
    keeper = Keeper(1)
    fit(CNN, TRAIN, VAL, BASE, keeper)
    checkpoint = Checkpoint.from_bytes(keeper.files[0])
    with pytest.raises(InputError, match=r"another settings \(learning_rate, seed\); go on with that"):
        fit(CNN, TRAIN, VAL, replace(BASE, seed=3, learning_rate=1e-3), resume=checkpoint)
    with pytest.raises(InputError, match=r"another spec \(parameters\)"):
        fit(small_spec("cnn", depth=2, width=4), TRAIN, VAL, BASE, resume=checkpoint)
    with pytest.raises(InputError, match="another films"):
        fit(CNN, blob_films(62), VAL, BASE, resume=checkpoint)
    fit(CNN, TRAIN, VAL, replace(BASE, threads=2, device=None), Keeper(2), resume=checkpoint)


@pytest.mark.parametrize("fault", ["cut short", "no header", "not at all", "newer"])
def test_what_is_no_checkpoint_is_refused(fault: str) -> None:
    whole = Checkpoint(tensors={"network/x": torch.ones(3)}, facts={"epoch": 1})
    data = {
        "cut short": whole.to_bytes()[:-2],
        "no header": safetensors.torch.save({"x": torch.ones(2)}),
        "not at all": b"PK\x03\x04 something else entirely",
        "newer": whole.to_bytes().replace(f'\\"format\\": {FORMAT}'.encode(), b'\\"format\\": 9'),
    }[fault]
    with pytest.raises(InputError, match="another version" if fault == "newer" else "no checkpoint of a training"):
        Checkpoint.from_bytes(data)
