"""Every draw of a space is a network that can be trained; a branch carries only its own parameters."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.networks.zoo import build
from models.spec import Preprocessing, Scalar
from tuning.recipes.recipe import read_recipe
from tuning.search.trial import parameters_of
from tuning.spaces.domain import Domain
from tuning.spaces.space import (
    BASELINE,
    BASELINES,
    GIVEN,
    KIND,
    TRAINING,
    SearchSpace,
    leaves,
    to_plan,
)
from tuning.spaces.space_file import differences, from_json, read_space, space_for, space_names, to_toml

BACKBONE = "mobilenetv3_small_050"
WEIGHTS = {"backbone": {"weights": Domain(choices=("none", "/weights/some.safetensors"))}}
PLAIN = Preprocessing(size=224, decode="exact")


def with_weights(space: SearchSpace) -> SearchSpace:
    """As if a user had named a file of weights beside random ones."""
    tables = {table: dict(of) for table, of in space.tables.items()}
    pretrained = dict(read_space("default").tables["pretrained"])
    del pretrained["resolution"]  # those of the space serve
    backbone = {**tables["backbone"], **WEIGHTS["backbone"]}
    return replace(space, tables={**tables, "backbone": backbone, "pretrained": pretrained})


def draws(space: SearchSpace, seed: int, count: int) -> list[dict[str, Scalar]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = []
    for _ in range(count):
        trial = study.ask()
        space(trial)
        drawn.append(trial.params)
    return drawn


@pytest.fixture
def spaced(tmp_path: Path) -> Any:
    """Reads what stands in a user's file."""

    def read(text: str, size: int = 224) -> SearchSpace:
        path = tmp_path / "space.toml"
        path.write_text(text)
        return space_for(size, source=str(path))

    return read


@given(seed=st.integers(0, 2**31), size=st.sampled_from([32, 64, 100, 224]))
@settings(max_examples=15, deadline=None)
def test_every_suggestion_is_a_model_and_a_training(seed: int, size: int) -> None:
    space = with_weights(space_for(size, families=("mlp", "cnn", BACKBONE), resolutions=(32, 48, 64)))
    dataset = Preprocessing(size=size, decode="exact")
    for parameters in draws(space, seed, 6):
        plan = to_plan(parameters, preprocessing=dataset, epochs=3, seed=5, threads=1)
        assert plan.spec.preprocessing.size <= size
        assert plan.spec.preprocessing.decode == "exact"
        assert (plan.training.epochs, plan.training.seed, plan.training.threads) == (3, 5, 1)
        assert (plan.weights is None) == (parameters.get("backbone_weights", "none") == "none")
        assert plan.weights or (plan.head is None and plan.training.frozen_groups == 0)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=4, deadline=None)
def test_every_suggestion_builds_a_network(seed: int) -> None:
    space = space_for(64, families=("mlp", "cnn", BACKBONE))
    for parameters in draws(space, seed, 3):
        spec = to_plan(parameters, preprocessing=Preprocessing(size=64), epochs=1, seed=0).spec
        assert build(spec).eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 2)


def test_a_branch_has_only_its_own_parameters() -> None:
    space = with_weights(space_for(64, families=("mlp", "cnn", BACKBONE)))
    shared = set(space.tables[""])
    own = {family: {f"{family}_{name}" for name in space.tables[family]} for family in ("mlp", "cnn")}
    own[BACKBONE] = {"backbone_drop_rate", "backbone_weights"}
    for parameters in draws(space, seed=0, count=90):
        family = str(parameters["family"])
        kept = {name for name in parameters if not name.startswith("pretrained_")}
        if parameters.get("backbone_weights", "none") == "none":
            assert kept == set(parameters)
            assert kept == {"family"} | shared | own[family]
        else:  # what is otherwise for pretrained networks is asked for there, and not twice
            assert "learning_rate" not in parameters
            assert {"pretrained_learning_rate", "pretrained_frozen_groups"} <= set(parameters)


def test_what_is_drawn_is_what_is_trained() -> None:
    parameters: dict[str, Scalar] = {"family": "cnn", "resolution": 32, "cnn_depth": 2, "cnn_dropout": 0.25}
    spec = to_plan(parameters, preprocessing=Preprocessing(size=64), epochs=1, seed=0).spec
    assert (spec.name, spec.parameters) == ("cnn", {"depth": 2, "dropout": 0.25})
    backbone: dict[str, Scalar] = {
        "family": "resnet18", "jpeg": 0.2, "backbone_drop_rate": 0.5, "resnet18_weights": "w.pth", "learning_rate": 0.1,
        "pretrained_learning_rate": 0.001, "pretrained_head_first": True, "pretrained_l2": 0.5,
        "pretrained_normalise": "symmetric", "pretrained_frozen_groups": 2,
    }  # fmt: skip
    plan = to_plan(backbone, preprocessing=Preprocessing(size=64), epochs=1, seed=3, objective="auc")
    assert (plan.spec.parameters, plan.spec.preprocessing.size) == ({"drop_rate": 0.5}, 64)
    assert plan.spec.preprocessing.normalise == "symmetric"
    assert (plan.training.learning_rate, plan.training.frozen_groups, plan.training.jpeg) == (0.001, 2, 0.2)
    assert plan.weights == "w.pth"
    assert plan.head is not None
    assert (plan.head.l2, plan.head.seed) == (0.5, 3)
    with pytest.raises(InputError, match="cnn has no parameter 'cnn_height'"):
        to_plan({"family": "cnn", "cnn_height": 3}, preprocessing=PLAIN, epochs=1, seed=0)


@pytest.mark.parametrize("source", ["default", "grid"])
def test_baselines_are_constants_outside_the_sampled_space(source: str) -> None:
    space = space_for(128, source=source, families=("cnn",), resolutions=(96, 64))
    study = optuna.create_study()
    for name in BASELINES:
        study.enqueue_trial({}, user_attrs={BASELINE: name})
        trial = study.ask()
        config = space(trial)
        assert config == {KIND: "baseline", "family": name, "resolution": 64}
        assert trial.params == {}
        spec = to_plan(parameters_of(config), preprocessing=Preprocessing(size=128), epochs=1, seed=0).spec
        assert (spec.name, spec.parameters) == (name, {})


def test_a_given_trial_is_sampled_nowhere() -> None:
    study = optuna.create_study()
    study.enqueue_trial({}, user_attrs={GIVEN: {"family": "cnn", "resolution": 999}})
    trial = study.ask()
    assert (space_for(64)(trial), trial.params) == ({"family": "cnn", "resolution": 999}, {})


def test_the_grid_of_the_recipe_is_a_space() -> None:
    recipe, points = read_recipe("cnn-grid"), leaves(space_for(224, source="cnn-grid"))
    assert len(points) == len(recipe.combinations()) == 24
    trained = []
    for point in points:
        plan = to_plan(point, preprocessing=PLAIN, epochs=6, seed=0)
        assert (plan.spec.preprocessing.size, plan.spec.preprocessing.normalise) == (96, "unit")
        assert plan.training == recipe.training
        trained.append(dict(plan.spec.parameters))
    wanted = [{**recipe.parameters, **combination} for combination in recipe.combinations()]
    assert sorted(map(str, (sorted(one.items()) for one in trained))) == sorted(
        map(str, (sorted(one.items()) for one in wanted))
    )


discrete = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=3, unique=True),
        "accumulate": st.sampled_from([{"low": 1, "high": 2}, {"low": 2, "high": 4, "log": True}]),
        "mixup": st.just({"choices": [0.0, 0.2], "when": {"batch_size": [16, 32]}}),
        "cnn": st.fixed_dictionaries({}, optional={"depth": st.just([2, 3]), "residual": st.just([True, False])}),
        "mlp": st.fixed_dictionaries({}, optional={"width": st.just([8, 16, 24])}),
    },
)  # fmt: skip


@given(of=discrete, families=st.sampled_from([["mlp"], ["cnn"], ["mlp", "cnn"]]))
@settings(max_examples=40, deadline=None)
def test_leaves_are_every_point_of_a_discrete_space_once(of: dict[str, Any], families: list[str]) -> None:
    value = {name: one for name, one in of.items() if name not in {"mlp", "cnn"} or name in families}
    space = from_json({"family": families, **value})
    points = leaves(space)
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points)
    batches = of.get("batch_size", [32])
    mixing = sum(2 if "mixup" in of and batch in {16, 32} else 1 for batch in batches)
    accumulated = of["accumulate"]["high"] - of["accumulate"]["low"] + 1 if "accumulate" in of else 1
    for family in families:
        architectures = 1
        for choices in of.get(family, {}).values():
            architectures *= len(choices)
        found = [point for point in points if point["family"] == family]
        assert len(found) == mixing * accumulated * architectures
    assert all(parameters in points for parameters in draws(space, 1, 20))


def test_leaves_of_an_infinite_space_are_refused() -> None:
    with pytest.raises(InputError, match=r"learning_rate is any number from 0\.0005 to 0\.01; give a list"):
        leaves(space_for(64))


def test_resolutions_above_the_dataset_are_left_out_and_depths_below_the_films() -> None:
    def fitting(size: int) -> tuple[Any, ...]:
        space = space_for(size, families=("cnn",), resolutions=(128, 64, 96))
        return space.tables[""]["resolution"].choices, space.tables["cnn"]["depth"].choices[-1]

    assert (fitting(224), fitting(100), fitting(32)) == (((64, 96, 128), 5), ((64, 96), 5), ((32,), 4))


@given(
    low=st.floats(1e-6, 1e-3),
    factor=st.floats(1.5, 1000),
    log=st.booleans(),
    batches=st.lists(st.integers(2, 256), min_size=1, max_size=4, unique=True),
    weights=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8),
    flip=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_space_is_read_as_it_was_written(
    low: float, factor: float, log: bool, batches: list[int], weights: str, flip: bool, tmp_path_factory: Any
) -> None:
    space = from_json(
        {
            "family": ["cnn", "resnet18"],
            "learning_rate": {"low": low, "high": low * factor, "log": log},
            "batch_size": batches,
            "warm_up": {"low": 0.0, "high": 0.5, "log": False, "when": {"schedule": ["cosine"]}},
            "cnn": {"residual": [flip]},
            "resnet18": {"weights": [f"s3://weights/{weights}"]},
        }
    )
    path = tmp_path_factory.mktemp("spaces") / "space.toml"
    path.write_text(to_toml(space), encoding="utf-8")
    assert read_space(str(path)) == space
    assert from_json(json.loads(json.dumps(space.to_json()))) == space
    assert pickle.loads(pickle.dumps(space)) == space


@pytest.mark.parametrize("name", space_names())
def test_the_spaces_that_come_with_rayscan(name: str) -> None:
    space = space_for(224, source=name)
    assert pickle.loads(pickle.dumps(space)) == space
    assert from_json(space.to_json()) == space
    assert "flip" not in {name for table in space.tables.values() for name in table}


def test_a_file_changes_the_default(spaced: Any) -> None:
    text = 'family = ["mlp", "cnn"]\nbatch_size = 8\nflip = [0.0, 0.5]\n[cnn]\ndepth = 3\n[mlp]\nlearning_rate = 1e-3\n'
    space = spaced(text)
    default = space_for(224)
    changed = {**default.tables[""], "batch_size": Domain(choices=(8,)), "flip": Domain(choices=(0.0, 0.5))}
    assert space.tables[""] == changed
    assert space.tables["cnn"] == {**default.tables["cnn"], "depth": Domain(choices=(3,))}
    mlp = [drawn for drawn in draws(space, 0, 20) if drawn["family"] == "mlp"]
    assert mlp
    assert all("learning_rate" not in drawn and drawn["mlp_learning_rate"] == 1e-3 for drawn in mlp)
    told = differences(default.to_json(), space.to_json())
    assert told.startswith('family: ["cnn"], now ["mlp", "cnn"]; ')
    assert "batch_size: null, now [8]" in told


def test_weights_of_one_backbone_and_of_all(spaced: Any, tmp_path: Path) -> None:
    space = spaced('family = ["resnet18", "resnet34"]\n[resnet18]\nweights = ["none", "w.pth"]\n')
    assert space.weights_of("resnet18") == [str(tmp_path / "w.pth")]  # of the file's folder
    assert space.weights_of("resnet34") == []
    named = space_for(64, families=("resnet34",), weights="imagenet")
    assert named.weights_of("resnet34") == ["imagenet"]
    with pytest.raises(InputError, match="weights are for timm backbones"):
        space_for(64, weights="imagenet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate = 1e-3", "did you mean 'learning_rate'"),
        ("[cnn]\ndeph = 3", r"\[cnn\] has no 'deph'; did you mean 'depth'"),
        ("[cn]\ndepth = 3", r"no table \[cn\]; did you mean 'cnn'"),
        ("[resnet18]\ndrop_rate = 0.1", "add it to family"),
        ("[resnet1]\ndrop_rate = 0.1", "unknown model 'resnet1'"),
        ('family = ["cnn", "resnet1"]', "unknown model 'resnet1'"),
        ('family = "majority"', "cannot search the family 'majority'"),
        ("family = []", "no family to search"),
        ("family = [3]", "names no families"),
        ("batch_size = 1", "batch_size=1 is out of range"),
        ("batch_size = 16.5", "must be of type int"),
        ("batch_size = []", "no value to choose"),
        ("learning_rate = { min = 1e-4, max = 1e-3 }", "not a set of values"),
        ("learning_rate = { low = 1e-2, high = 1e-3 }", "low must be below high"),
        ("mixup = { low = 0.0, high = 1.0, log = true }", "above 0 with log = true"),
        ("learning_rate = { low = 1e-3, high = 20.0 }", "learning_rate must lie"),
        ('optimiser = ["adamw", "adam"]', "unknown optimiser 'adam'"),
        ('sampling = ["shuffle", "balanced"]', "class_weighting and sampling are both balanced"),
        ('warm_up = { low = 0.0, high = 0.2, when = { schedul = "cosine" } }', "did you mean 'schedule'"),
        ("warm_up = { choices = [0.1], when = 3 }", "not a condition"),
        ("resolution = 8", "out of range"),
        ("frozen_groups = [0, 2]", "all of it must learn"),
        ('family = "resnet18"\n[backbone]\nfrozen_groups = 9', "resnet18 has 6 groups of layers; choose 5 at most"),
        ("resolution = 32\n[cnn]\ndepth = 5", "no depth of the cnn fits films of 32 pixels: 5, the least, needs 64"),
        ("[probe]\nhidden = -1", "hidden=-1 is out of range"),
        ('base = "defualt"', "choose cnn-grid, default, grid, empty"),
        ("family = cnn", "not a space"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_searched_is_refused_in_one_line(spaced: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        spaced(text)
    assert "\n" not in str(refused.value)


def test_a_space_that_is_not_there() -> None:
    with pytest.raises(InputError, match="did you mean 'default'"):
        read_space("defaul")
    with pytest.raises(InputError, match="no such space file"):
        read_space("nowhere.toml")


def test_a_trial_of_another_space_is_translated_or_refused(spaced: Any) -> None:
    space = spaced(
        "batch_size = [16, 32]\nmixup = [0.0, 0.2]\njpeg = [0.0, 0.2]\nshrink = [0.0, 0.2]\nema = [0.0, 0.99]\n"
        'sampling = { choices = ["shuffle", "balanced"], when = { class_weighting = "none" } }\n'
        "[cnn]\nlearning_rate = { low = 1e-4, high = 1e-2 }\n"
    )
    point = space.translated({"family": "cnn", "resolution": 96, "learning_rate": 0.003, "cnn_depth": 3})
    assert (point["cnn_learning_rate"], point["resolution"], point["cnn_depth"]) == (0.003, 96, 3)
    assert (point["batch_size"], point["mixup"], point["cnn_width"]) == (32, 0.0, 24)  # what it did not search
    assert "learning_rate" not in point
    for outside, message in (
        ({"batch_size": 64}, "batch_size=64"),
        ({"flip": 0.5}, "flip=0.5"),
        ({"family": "resnet18"}, "resnet18 is not searched"),
        ({"cnn_height": 3}, "no parameter 'cnn_height'"),
    ):
        with pytest.raises(InputError, match=message):
            space.translated({"family": "cnn", **outside})
    # what cannot act is not enqueued, so that the trial, once run, is known to be the same
    assert "sampling" not in space.translated({"family": "cnn", "class_weighting": "balanced"})
    assert space.translated({"family": "cnn", "flip": 0.0})["family"] == "cnn"


def test_what_a_training_may_be_told_is_what_a_space_may_search() -> None:
    assert {"blur", "cutmix", "ema", "flip", "frozen_groups", "loss", "optimiser", "rate_decay"} <= set(TRAINING)
    assert not {"epochs", "seed", "device", "threads", "objective"} & set(TRAINING)


def test_the_usual_trial_of_a_family_has_its_defaults(spaced: Any) -> None:
    space = spaced(
        'family = ["cnn", "resnet18"]\nbatch_size = [16, 32]\nlearning_rate = 1e-4\n[resnet18]\nweights = "r.pth"'
    )
    cnn, backbone = space.usual()
    assert (cnn["family"], cnn["batch_size"], cnn["cnn_depth"]) == ("cnn", 32, 4)
    assert "learning_rate" not in cnn  # the default is no choice of this space
    assert (backbone["family"], Path(str(backbone["resnet18_weights"])).name) == ("resnet18", "r.pth")
    assert (backbone["pretrained_resolution"], backbone["pretrained_frozen_groups"]) == (224, 0)
    for point in (cnn, backbone):
        assert set(point) <= set(drawn_from(space, point))


def drawn_from(space: SearchSpace, point: dict[str, Scalar]) -> dict[str, Scalar]:
    """The parameters of an enqueued trial; Optuna refuses none of them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(point)
    trial = study.ask()
    space(trial)
    assert {name: trial.params[name] for name in point} == point
    return trial.params
