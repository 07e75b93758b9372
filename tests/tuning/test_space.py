"""Every draw of the space is a network that can be trained; a branch carries only its own parameters."""

import pickle
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cnn import CNNSettings
from models.errors import InputError
from models.spec import Preprocessing, Scalar
from models.zoo import MLPSettings, build
from tuning.space import BASELINE, BASELINES, SearchSpace, leaves, space_for, to_spec_and_settings

TRAINING = {"family", "resolution", "learning_rate", "weight_decay", "batch_size"} | {
    "label_smoothing",
    "class_weighting",
    "augment",
}


def draws(space: SearchSpace, seed: int, count: int) -> list[dict[str, Scalar]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = []
    for _ in range(count):
        trial = study.ask()
        space(trial)
        drawn.append(trial.params)
    return drawn


@given(seed=st.integers(0, 2**31), size=st.sampled_from([16, 32, 64, 100, 224]), grid=st.booleans())
@settings(max_examples=8, deadline=None)
def test_every_draw_builds_a_network(seed: int, size: int, grid: bool) -> None:
    space = space_for(size, families=("mlp", "cnn", "mobilenetv3_small_050"), resolutions=(16, 32, 48, 64), grid=grid)
    dataset = Preprocessing(size=size, decode="exact", normalise="unit")
    for parameters in draws(space, seed, 4):
        spec, training = to_spec_and_settings(parameters, preprocessing=dataset, epochs=3, seed=5, threads=1)
        assert spec.preprocessing.size == parameters["resolution"] <= size
        assert (spec.preprocessing.decode, spec.preprocessing.normalise) == ("exact", "unit")
        assert (training.epochs, training.seed, training.threads) == (3, 5, 1)
        assert training.learning_rate == parameters["learning_rate"]
        side = spec.preprocessing.size
        assert build(spec).eval()(torch.zeros(2, 1, side, side)).shape == (2, 2)


def test_a_branch_has_only_its_own_parameters() -> None:
    space = space_for(64, families=("mlp", "cnn", "resnet18"), resolutions=(64,), grid=False)
    own = {
        "mlp": {f"mlp_{name}" for name in ("width", "layers", "dropout")},
        "cnn": {f"cnn_{name}" for name in ("depth", "width", "residual", "pooling", "dropout")},
        "resnet18": {"backbone_drop_rate"},
    }
    drawn = draws(space, seed=0, count=60)
    assert {parameters["family"] for parameters in drawn} == set(own)
    for parameters in drawn:
        assert set(parameters) == TRAINING | own[str(parameters["family"])]


def test_what_is_drawn_is_what_is_trained() -> None:
    parameters: dict[str, Scalar] = {"family": "cnn", "resolution": 32, "cnn_depth": 2, "cnn_dropout": 0.25}
    spec, _ = to_spec_and_settings(parameters, preprocessing=Preprocessing(size=64), epochs=1, seed=0)
    assert spec.name == "cnn"
    assert spec.parameters == {"depth": 2, "dropout": 0.25}
    backbone: dict[str, Scalar] = {"family": "resnet18", "backbone_drop_rate": 0.5}
    spec, _ = to_spec_and_settings(backbone, preprocessing=Preprocessing(size=64), epochs=1, seed=0)
    assert (spec.parameters, spec.preprocessing.size) == ({"drop_rate": 0.5}, 64)


@pytest.mark.parametrize("grid", [False, True])
def test_baselines_are_constants_outside_the_sampled_space(grid: bool) -> None:
    space = space_for(128, families=("cnn",), resolutions=(96, 64), grid=grid)
    study = optuna.create_study()
    for name in BASELINES:
        study.enqueue_trial({}, user_attrs={BASELINE: name})
        trial = study.ask()
        parameters = space(trial)
        assert parameters == {BASELINE: True, "family": name, "resolution": 64}
        assert trial.params == {}
        spec, _ = to_spec_and_settings(parameters, preprocessing=Preprocessing(size=128), epochs=1, seed=0)
        assert (spec.name, spec.parameters) == (name, {})


@given(
    families=st.lists(st.sampled_from(["mlp", "cnn", "resnet18"]), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=10, deadline=None)
def test_leaves_are_every_point_of_the_grid_once(families: list[str], seed: int) -> None:
    space = space_for(64, families=families, resolutions=(32, 64), grid=True)
    points = leaves(space)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert len(points) == sum({"mlp": 8, "cnn": 16, "resnet18": 4}[family] for family in families)
    assert all(parameters in points for parameters in draws(space, seed, 20))


def test_leaves_of_an_infinite_space_are_refused() -> None:
    with pytest.raises(InputError, match="learning_rate"):
        leaves(SearchSpace())


def test_resolutions_above_the_dataset_are_left_out() -> None:
    def sides(size: int) -> tuple[int, ...]:
        return space_for(size, families=("cnn",), resolutions=(128, 64, 96), grid=False).resolutions

    assert (sides(224), sides(100), sides(32)) == ((64, 96, 128), (64, 96), (32,))


@pytest.mark.parametrize("families", [(), ("majority",), ("cnn", "no_such_backbone")])
def test_families_that_cannot_be_searched_are_refused(families: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="family"):
        space_for(64, families=families, resolutions=(64,), grid=False)


def test_the_space_pickles_and_is_written_as_json() -> None:
    space = space_for(64, families=("mlp", "cnn"), resolutions=(32, 64), grid=False)
    assert pickle.loads(pickle.dumps(space)) == space
    written: dict[str, Any] = space.to_json()
    assert written == {"families": ["mlp", "cnn"], "resolutions": [32, 64], "grid": False}


def test_parameter_names_are_those_of_the_families() -> None:
    drawn = draws(space_for(64, families=("mlp", "cnn"), resolutions=(64,), grid=False), seed=1, count=30)
    names = {name for parameters in drawn for name in parameters} - TRAINING
    fields = {f"mlp_{name}" for name in vars(MLPSettings())} | {f"cnn_{name}" for name in vars(CNNSettings())}
    assert names <= fields
