"""A training whose frozen layers run once comes to what it would come to if they ran at every step."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.networks.preprocess import Preprocess
from models.networks.zoo import build, layer_groups
from models.spec import ModelSpec
from tests.models.synthetic import blob_films, small_spec
from tuning.training import learner, stem
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import EpochReport, EpochState, Fitted, TrainSettings, fit
from tuning.training.optimiser import freeze
from tuning.training.stem import Stem, keeps_still, make_stem

TRAIN, VAL = blob_films(64), blob_films(48, seed=1)
STILL = TrainSettings(
    epochs=2, batch_size=16, learning_rate=2e-3, augment=0.0, frozen_groups=1, device="cpu", threads=1
)
BACKBONES = ["mobilenetv3_small_050", "mobilenetv2_035", "resnet18", "densenet121"]


def at_every_step(spec: ModelSpec, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> Fitted:
    """The oracle."""
    with monkeypatch.context() as patched:
        patched.setattr(learner, "keeps_still", lambda settings: False)
        return fit(spec, TRAIN, VAL, settings)


def assert_same(found: Fitted, expected: Fitted) -> None:
    """Within what another order of additions makes of two epochs."""
    for report, of in zip(found.history, expected.history, strict=True):
        assert report.train_loss == pytest.approx(of.train_loss, abs=1e-4)
        assert report.val_loss == pytest.approx(of.val_loss, abs=1e-3)
    for name, value in expected.state_dict.items():
        torch.testing.assert_close(found.state_dict[name], value, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"accumulate": 2}, {"frozen_groups": 2}])
def test_a_cnn_is_trained_as_if_its_frozen_layers_ran(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec, settings = small_spec("cnn", depth=3, width=8, dropout=0.2), replace(STILL, **changes)
    with caplog.at_level(logging.INFO, logger="rayscan"):
        found = fit(spec, TRAIN, VAL, settings)
    assert "frozen modules run once" in caplog.text
    assert_same(found, at_every_step(spec, settings, monkeypatch))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_starts_behind_its_stem(name: str) -> None:
    made, network, preprocess = stem_of(name)
    assert made is not None
    assert made.train.shape[0] == len(TRAIN)
    films = preprocess(torch.tensor(VAL.pixels))
    network.eval()
    with torch.no_grad():
        expected = network(films)
        ran = count_calls(network, made.layers)
        with made.skipped(network):
            found = network(made.val)
        assert ran == []
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        network(films)  # the layers run again once the block has ended
    assert ran == list(made.layers)


def stem_of(name: str, **parameters: Any) -> tuple[Stem | None, torch.nn.Module, Preprocess]:
    spec = small_spec(name, **parameters)
    torch.manual_seed(0)
    network, preprocess = build(spec), Preprocess(spec.preprocessing)
    groups = layer_groups(network)
    freeze(groups, replace(STILL, frozen_groups=len(groups) // 2), 1)
    made = make_stem(network, preprocess, TRAIN.pixels, VAL.pixels, device=torch.device("cpu"), precision=torch.no_grad)
    return made, network, preprocess


def count_calls(network: torch.nn.Module, names: tuple[str, ...]) -> list[str]:
    """Names of those modules as their own code runs."""
    ran: list[str] = []
    for name in names:
        module = network.get_submodule(name)
        for part in module.modules():
            if not list(part.children()):
                part.register_forward_hook(
                    lambda part, given, result, name=name, module=module: (
                        ran.append(name) if "forward" not in vars(module) and name not in ran else None
                    )
                )
    return ran


def test_a_stem_that_is_never_the_same_runs_at_every_step() -> None:
    assert stem_of("mobilenetv3_small_050", drop_path_rate=0.2)[0] is None


def test_too_much_to_keep_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem, "MOST_BYTES", 1000)
    assert stem_of("mobilenetv3_small_050")[0] is None


@pytest.mark.parametrize(
    "changes",
    [{"augment": 0.1}, {"flip": 0.5}, {"mixup": 0.2}, {"cutmix": 0.2}, {"frozen_groups": 0}, {"unfreeze_every": 1}],
)
def test_films_or_layers_that_change_keep_nothing_still(changes: dict[str, Any]) -> None:
    assert keeps_still(STILL)
    assert not keeps_still(replace(STILL, **changes))


def test_an_interrupted_training_goes_on_as_if_unbroken() -> None:
    spec = small_spec("cnn", depth=3, width=8, dropout=0.2)
    kept: list[Checkpoint] = []

    def stop(report: EpochReport, state: EpochState) -> bool:
        kept.append(Checkpoint.from_bytes(state.checkpoint().to_bytes()))
        return False

    whole = fit(spec, TRAIN, VAL, STILL)
    fit(spec, TRAIN, VAL, STILL, stop)
    resumed = fit(spec, TRAIN, VAL, STILL, resume=kept[0])
    assert np.array_equal(resumed.val_logits, whole.val_logits)
    assert all(torch.equal(value, resumed.state_dict[name]) for name, value in whole.state_dict.items())
