"""Recipes: those that come along are whole, a file of one's own is checked, and each way to learn gives a bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import load_bundle
from models.engines.choice import load_engine
from models.errors import InputError
from models.networks.zoo import build, layer_groups
from models.spec import ModelSpec, Preprocessing
from models.statistics.metrics import auc
from pipelines.storage import open_store
from tests.models.synthetic import SIZE, blob_films
from tests.pipelines.datasets import write_dataset
from tests.tuning.recipes.conftest import CNN
from tuning.recipes.recipe import Recipe, read_recipe, recipe_names, to_toml
from tuning.recipes.train import UNPROMOTED, kept_until_promoted, train
from tuning.training.head_settings import HeadSettings
from tuning.training.settings import TrainSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    write_dataset(store, Preprocessing(size=SIZE), {"train": blob_films(48, seed=3), "val": blob_films(40, seed=1)})
    return store.root


def points(recipe: Recipe) -> list[Recipe]:
    return [recipe.at(combination) for combination in recipe.combinations()]


QUICK = TrainSettings(epochs=2, batch_size=8, augment=0.0, threads=1)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_along_build_what_they_say(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.about.endswith(".")
    for point in points(recipe):
        size = point.size or 224
        spec = ModelSpec(
            name=point.model,
            parameters=point.parameters,
            preprocessing=Preprocessing(size=size, normalise=point.normalise),
        )
        network = build(spec).eval()
        if isinstance(point.learn, int):
            assert len(layer_groups(network)) > point.learn
        if point.parameters == points(recipe)[0].parameters:
            assert network(torch.zeros(1, 1, size, size)).shape == (1, 2)


def test_a_grid_is_every_combination_once() -> None:
    found = points(read_recipe("cnn-grid"))
    assert len(found) == 24
    assert len({tuple(sorted(point.parameters.items())) for point in found}) == 24
    assert all(point.parameters["residual"] is False for point in found), "what all share stays"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('model = "cnn"\nepochs = 3', r"a recipe has no 'epochs'"),
        ('model = "cnn"\n[training]\nepoch = 3', r"\[training\] has no 'epoch'; did you mean 'epochs'\?"),
        ('about = "x"', 'names its model, as in model = "cnn"'),
        ('model = "cnn"\nlearn = "top"', 'learn=.top. must be "all", "head"'),
        ('model = "cnn"\nlearn = 0', "above 0"),
        ('model = "cnn"\ncalibrate = "beta"', "unknown calibration 'beta'"),
        ('model = "cnn"\n[grid]\ndepth = 3', "list of values"),
        ('model = "cnn"\n[head]\nl2 = 0.1', r'\[head\] is for recipes with learn = "head"'),
        ('model = "cnn"\nlearn = "head"\n[head]\nhidden = 8', r"\[head\] has no 'hidden'; known are l2, steps"),
        ('model = "cnn"\nlearn = "head"\n[head]\nl2 = "much"', "head: l2=much is out of range"),
        ('model = "cnn"\nselect = "best"\n[grid]\nwidth = [4]', "unknown selection 'best'; choose auc or robust"),
        ('model = "cnn"\nselect = "robust"', "nothing to select robust from: the recipe has no"),
        ("model = ", "not a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line_that_names_the_file(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=line) as refused:
        read_recipe(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
recipes = st.builds(
    Recipe,
    model=text,
    about=text,
    size=st.none() | st.integers(16, 2048),
    normalise=st.sampled_from(["film", "unit"]),
    calibrate=st.sampled_from(["temperature", "isotonic"]),
    learn=st.sampled_from(["all", 1, 3]),
    head_first=st.booleans(),
    weights=text.map(lambda name: str(Path("/weights") / name)),  # a relative one is of the file's folder
    parameters=st.dictionaries(
        st.sampled_from(["depth", "drop_rate", "norm", "residual"]),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | text,
    ),
    training=st.builds(
        TrainSettings,
        epochs=st.integers(1, 99),
        learning_rate=st.floats(1e-12, 10),
        optimiser=st.sampled_from(["adamw", "sgd"]),
        objective=st.sampled_from(["auc", "sensitivity@specificity=0.9"]),
        device=st.none() | st.just("cpu"),
        threads=st.none() | st.integers(1, 8),
    ),
    grid=st.dictionaries(st.sampled_from(["width", "l2"]), st.lists(st.floats(0, 1) | st.integers(), min_size=1)),
)


@given(recipe=recipes, l2=st.floats(1e-6, 100), steps=st.integers(1, 500), frozen=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_recipe_is_read_as_it_was_written(
    recipe: Recipe, l2: float, steps: int, frozen: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if frozen:
        recipe = replace(recipe, learn="head", head_first=False)
    if recipe.fits_head:
        recipe = replace(recipe, head=HeadSettings(l2=l2, steps=steps))
    path = tmp_path_factory.mktemp("recipes") / "mine.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read_recipe(str(path)) == replace(recipe, name="mine")
    path.write_text(to_toml(replace(recipe, weights=None, head_first=False)), encoding="utf-8")
    assert read_recipe(str(path)).weights is None


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_come_along_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(read_recipe(name)), encoding="utf-8")
    assert read_recipe(str(path)) == read_recipe(name)


def test_a_grid_reaches_a_head_that_is_fitted_first() -> None:
    recipe = Recipe(model="cnn", weights="some", head_first=True, grid={"l2": [0.5], "width": [4]})
    assert points(recipe) == [replace(recipe, grid={}, head=HeadSettings(l2=0.5), parameters={"width": 4})]


def test_a_name_that_is_nearly_one_is_told() -> None:
    with pytest.raises(InputError, match=r"there is no recipe 'cnn-bsic'; did you mean 'cnn-basic'\?"):
        read_recipe("cnn-bsic")
    with pytest.raises(InputError, match="no such recipe file"):
        read_recipe("absent.toml")


def test_a_grid_keeps_its_best_and_tells_of_all(dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(model="cnn", parameters={"depth": 2}, training=QUICK, grid={"width": [4, 8], "head": [0, 8]})
    train(dataset, str(tmp_path / "bundle"), recipe)
    bundle = load_bundle(tmp_path / "bundle")
    tried = bundle.lineage["grid"]
    assert len(tried) == 4
    best = max(tried, key=lambda point: point["val_auc"])
    assert dict(bundle.spec.parameters) == best["parameters"]


def test_films_are_shown_unless_they_are_not_wanted(dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", parameters={"width": 8}, training=QUICK)
    train(dataset, str(tmp_path / "with"), recipe)
    train(dataset, str(tmp_path / "without"), recipe, show_films=False)
    shown = {name: "samples" in load_bundle(tmp_path / name).evaluation["val"] for name in ("with", "without")}
    assert shown == {"with": True, "without": False}


def test_of_a_grid_the_one_that_changed_films_cost_least_may_be_kept(dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", training=QUICK, grid={"width": [4, 8, 12, 16, 24, 32]}, select="robust")
    train(dataset, str(tmp_path / "bundle"), recipe)
    bundle = load_bundle(tmp_path / "bundle")
    selection = bundle.lineage["selection"]
    best = sorted(bundle.lineage["grid"], key=lambda point: -point["val_auc"])[:5]
    assert [one["parameters"] for one in selection] == [point["parameters"] for point in best]
    robust = max(selection, key=lambda one: one["mean_balanced_accuracy"])
    assert bundle.lineage["chosen"] == robust["parameters"]
    assert dict(bundle.spec.parameters) == robust["parameters"]
    found = bundle.evaluation["val"]["robustness"]
    assert found["mean_auc"] == pytest.approx(robust["mean_auc"], abs=1e-6), "these are the weights that were asked"
    train(dataset, str(tmp_path / "by-auc"), replace(recipe, select="auc"))
    lineage = load_bundle(tmp_path / "by-auc").lineage
    assert lineage["chosen"] == best[0]["parameters"] != robust["parameters"]
    assert "selection" not in lineage


def test_a_grid_of_heads_reads_the_kept_features(
    dataset: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Recipe(model="cnn", parameters=CNN, weights=weights, learn="head", training=QUICK)
    train(dataset, str(tmp_path / "one"), one)
    monkeypatch.setattr("tuning.training.features.compute_features", _never)
    train(dataset, str(tmp_path / "grid"), replace(one, grid={"l2": [10.0, 0.03, 100.0], "steps": [60]}))
    lineage = load_bundle(tmp_path / "grid").lineage
    tried = {point["parameters"]["l2"]: point["val_auc"] for point in lineage["grid"]}
    assert set(tried) == {10.0, 0.03, 100.0}
    assert tried[lineage["chosen"]["l2"]] == max(tried.values())
    assert tried[0.03] == load_bundle(tmp_path / "one").lineage["history"][0]["val_auc"], "the default of a head"
    assert len(set(tried.values())) > 1, "l2 reaches the head"


def test_all_may_learn_from_a_classifier_that_was_fitted_first(dataset: str, weights: str, tmp_path: Path) -> None:
    still = replace(QUICK, epochs=1, learning_rate=1e-9, weight_decay=0.0)
    recipe = Recipe(model="cnn", parameters=CNN, weights=weights, training=still, head_first=True)
    train(dataset, str(tmp_path / "all"), recipe)
    train(dataset, str(tmp_path / "head"), replace(recipe, head_first=False, learn="head"))
    begun, fitted = (layer_groups(load_bundle(tmp_path / name).network())[-1] for name in ("all", "head"))
    for one, other in zip(begun, fitted, strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-5, atol=1e-6)
        assert other.detach().abs().sum() > 0
    with pytest.raises(InputError, match="head_first needs weights"):
        replace(recipe, weights=None)


def test_a_classifier_fitted_first_fits_in_training_mode_too(dataset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    foreign = build(ModelSpec(name="cnn", parameters=CNN, preprocessing=Preprocessing(size=SIZE))).state_dict()
    for name, value in foreign.items():
        if name.endswith("running_var"):
            value.mul_(9)  # as if trained on films of three times the contrast
    path = str(tmp_path / "foreign.safetensors")
    safetensors.torch.save_file(foreign, path)
    still = replace(QUICK, epochs=1, batch_size=48, learning_rate=1e-9, weight_decay=0.0)
    recipe = Recipe(model="cnn", parameters={**CNN, "dropout": 0.0}, weights=path, training=still, head_first=True)
    train(dataset, str(tmp_path / "all"), recipe)
    train(dataset, str(tmp_path / "head"), replace(recipe, head_first=False, learn="head"))
    losses = [load_bundle(tmp_path / name).lineage["history"][0]["train_loss"] for name in ("all", "head")]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def _never(*_: object, **__: object) -> None:
    raise AssertionError("features are computed again")


def test_a_new_head_tells_kinds_apart_on_the_features_of_the_films_it_keeps(
    dataset: str, weights: str, tmp_path: Path
) -> None:
    recipe = Recipe(model="cnn", parameters=CNN, weights=weights, learn="head", training=QUICK)
    train(dataset, str(tmp_path / "two"), recipe)
    train(dataset, str(tmp_path / "kinds"), replace(recipe, classes=("NORMAL", "BACTERIA")))
    bundle = load_bundle(tmp_path / "kinds")
    assert bundle.lineage["counts"]["val"]["classes"] == {"NORMAL": 20, "BACTERIA": 10}
    val = blob_films(40, seed=1)
    kept = val.take(val.subtypes != "virus")
    probability = load_engine(bundle)(kept.pixels).probabilities[:, 1]
    assert bundle.evaluation["val"]["metrics"]["auc"]["value"] == pytest.approx(auc(kept.labels, probability), abs=1e-6)


def test_kinds_of_pneumonia_are_told_apart_and_disease_is_any_of_them(dataset: str, tmp_path: Path) -> None:
    classes = ("NORMAL", "VIRUS", "BACTERIA")
    recipe = Recipe(
        model="cnn", parameters={"depth": 2, "width": 8}, training=QUICK, classes=classes, calibrate="platt"
    )
    summary = train(dataset, str(tmp_path / "bundle"), recipe)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.spec.classes == classes
    val = blob_films(40, seed=1)
    inference = load_engine(bundle)(val.pixels)
    assert inference.probabilities.shape == (40, 3)
    entry = bundle.evaluation["val"]
    assert entry["metrics"]["positives"] == int(val.labels.sum())
    assert entry["metrics"]["auc"]["value"] == summary.auc
    assert summary.auc == pytest.approx(auc(val.labels, 1 - inference.probabilities[:, 0]), abs=1e-6)
    assert bundle.lineage["counts"]["val"]["classes"] == {"NORMAL": 20, "VIRUS": 10, "BACTERIA": 10}
    with pytest.raises(InputError, match=r"no film is of class FUNGUS; .* kinds here are BACTERIA, VIRUS"):
        train(dataset, str(tmp_path / "other"), replace(recipe, classes=("NORMAL", "FUNGUS")))


@pytest.mark.parametrize("word", ["needed", "imagenet", "s3://weights/it.pth", "/weights/it.pth"])
def test_weights_of_a_recipe_that_are_no_relative_path_stay(tmp_path: Path, word: str) -> None:
    (tmp_path / "r.toml").write_text(f'model = "cnn"\nweights = "{word}"\n')
    assert read_recipe(str(tmp_path / "r.toml")).weights == word


def test_a_relative_path_in_a_recipe_is_one_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.toml").write_text('model = "cnn"\nweights = "../it.pth"\n')
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/r.toml", str(tmp_path / "recipes" / "r.toml")):
        assert read_recipe(name).weights == str(tmp_path / "recipes" / "../it.pth")


def test_a_recipe_that_needs_weights_says_so_before_it_reads_a_film(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="starts from pretrained weights: name their file or URI with --weights"):
        train("/absent", str(tmp_path / "bundle"), read_recipe("xception-frozen"))


@pytest.mark.parametrize("learn", ["head", 1, "all"])
def test_of_pretrained_weights_only_what_may_learn_changes(dataset: str, tmp_path: Path, learn: str | int) -> None:
    parameters = {"depth": 2, "width": 4}
    start = build(ModelSpec(name="cnn", parameters=parameters, preprocessing=Preprocessing(size=SIZE))).state_dict()
    for name, value in start.items():
        if name.endswith("running_var"):
            value.mul_(1.5)  # as after training; a BatchNorm that does nothing would be taken for a folded one
    safetensors.torch.save_file(start, tmp_path / "weights.safetensors")
    recipe = Recipe(
        model="cnn",
        parameters=parameters,
        weights=str(tmp_path / "weights.safetensors"),
        learn=learn,  # type: ignore[arg-type]
        training=QUICK,
        calibrate="platt",
    )
    summary = train(dataset, str(tmp_path / "bundle"), recipe)
    bundle = load_bundle(tmp_path / "bundle")
    network = bundle.network()
    last = {id(parameter) for parameter in layer_groups(network)[-1]}
    changed = {
        (id(parameter) in last)
        for name, parameter in network.named_parameters()
        if not np.array_equal(parameter.detach().numpy(), start[name].numpy())
    }
    assert changed == ({True, False} if learn == "all" else {True})
    assert 0 <= summary.auc <= 1
    assert bundle.calibration.bias != 0


def test_the_same_seed_gives_the_same_model_where_the_weights_have_no_classifier(dataset: str, tmp_path: Path) -> None:
    parameters = {"depth": 2, "width": 4}
    network = build(ModelSpec(name="cnn", parameters=parameters, preprocessing=Preprocessing(size=SIZE)))
    last = {id(parameter) for parameter in layer_groups(network)[-1]}
    named = dict(network.named_parameters())
    start = {name: value for name, value in network.state_dict().items() if id(named.get(name)) not in last}
    safetensors.torch.save_file(start, tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    recipe = Recipe(model="cnn", parameters=parameters, weights=weights, training=QUICK)
    found = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.manual_seed(len(found))  # whatever was drawn before
        train(dataset, str(tmp_path / name), replace(recipe, training=replace(QUICK, seed=seed)))
        found.append(load_bundle(tmp_path / name).hashes["weights.safetensors"])
    assert found[0] == found[1] != found[2]


def test_a_promotion_that_fails_does_not_cost_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = {"layer.weight": torch.rand(3, 4).T}  # not contiguous, as channels_last leaves them
    place = tmp_path / "bundle"
    with pytest.raises(ZeroDivisionError), kept_until_promoted(str(place), weights):
        raise ZeroDivisionError
    kept = safetensors.torch.load_file(place / UNPROMOTED)
    assert torch.equal(kept["layer.weight"], weights["layer.weight"])
    assert f"its weights are kept at {(place / UNPROMOTED).as_uri()}" in caplog.text
    with kept_until_promoted(str(place), weights):
        assert (place / UNPROMOTED).exists()
    assert not (place / UNPROMOTED).exists()
