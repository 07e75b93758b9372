"""One model from those of K folds: each film is judged by the model that did not learn from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import load_bundle
from models.engines.choice import load_engine
from models.errors import InputError
from models.films import Films, join_films
from models.spec import Preprocessing
from models.statistics.calibration import UNCALIBRATED
from models.statistics.metrics import auc
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import open_store
from tests.models.synthetic import SIZE, blob_films
from tests.pipelines.datasets import write_dataset
from tests.tuning.recipes.conftest import CNN
from tuning.recipes import fold_models
from tuning.recipes.choices import Folds
from tuning.recipes.dealing import deal
from tuning.recipes.fold_models import fit_folds
from tuning.recipes.promote import HeldOut, calibrated
from tuning.recipes.recipe import Recipe, read_recipe, to_toml
from tuning.recipes.train import train
from tuning.training.settings import TrainSettings

QUICK = TrainSettings(epochs=3, batch_size=16, augment=0.0, threads=1, class_weighting="balanced")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    splits = {"train": blob_films(120, seed=3), "val": blob_films(40, seed=1), "test": blob_films(20, seed=2)}
    write_dataset(store, Preprocessing(size=SIZE), splits)
    store.delete("test.parquet")  # whoever reads the test films fails
    return store.root


@pytest.fixture(scope="module")
def films(dataset: str) -> Films:
    return join_films([load_films(dataset, split) for split in ("train", "val")])


def recipe_of(weights: str, folds: Folds = Folds(by="blocks", count=3)) -> Recipe:  # noqa: B008 (frozen)
    return Recipe(model="cnn", parameters=CNN, weights=weights, training=QUICK, folds=folds)


def test_each_film_is_judged_by_the_model_that_did_not_see_its_fold(dataset: str, weights: str, films: Films) -> None:
    recipe = recipe_of(weights)
    honest = fit_folds(recipe, films, read_dataset_info(dataset), dataset)
    honest.kept.forget()
    fold_of = deal(films, Folds(by="blocks", count=3), 0)
    assert [set(one.films.scan_ids) for one in honest.held_out] == [
        set(films.scan_ids[fold_of == number]) for number in (1, 2, 3)
    ]
    assert sorted(honest.films.scan_ids) == sorted(films.scan_ids)
    assert honest.films.scan_ids.tolist() == [scan for one in honest.held_out for scan in one.films.scan_ids]
    for one in honest.held_out:
        own = calibrated(one.fitted, UNCALIBRATED)
        np.testing.assert_allclose(
            one.fitted.val_logits, own.logits(torch.tensor(one.films.pixels)).detach().numpy(), atol=1e-4
        )
        assert one.fitted.best.epoch == QUICK.epochs, "no film chooses the epoch"
    # other films in a fold change every other model, and not the one that is without it
    turned = replace(films, pixels=np.where((fold_of == 2)[:, None, None], 255 - films.pixels, films.pixels))
    spoilt = fit_folds(recipe, turned, replace(read_dataset_info(dataset), fingerprint="turned"), dataset)
    spoilt.kept.forget()
    same = [
        all(torch.equal(value, other.fitted.state_dict[name]) for name, value in one.fitted.state_dict.items())
        for one, other in zip(honest.held_out, spoilt.held_out, strict=True)
    ]
    assert same == [False, True, False]


def test_the_bundle_holds_all_networks_and_the_figures_of_all_films(
    dataset: str, weights: str, films: Films, tmp_path: Path
) -> None:
    recipe = recipe_of(weights)
    summary = train(dataset, str(tmp_path / "bundle"), recipe)
    bundle = load_bundle(tmp_path / "bundle")
    entry = bundle.evaluation["val"]
    assert entry["metrics"]["n"] == len(films) == 160
    assert entry["out_of_fold"] == {"folds": 3, "films": 160}
    assert bundle.lineage["folds"] == "blocks:3"
    assert bundle.lineage["counts"]["train and val"]["films"] == 160
    assert set(entry["promises"]) == {"rule_out", "rule_in"}
    assert bundle.calibration.bias != 0, "platt, as the classes are weighted"
    again = fit_folds(recipe, films, read_dataset_info(dataset), dataset)
    again.kept.forget()
    odds = again.fitted.val_logits[:, 1] - again.fitted.val_logits[:, 0]
    assert summary.auc == pytest.approx(auc(again.films.labels, odds), abs=1e-6)
    # what scores new films is the mean of the networks' logits
    assert bundle.spec.members == 3
    own = [calibrated(one.fitted, UNCALIBRATED) for one in again.held_out]
    with torch.inference_mode():
        logits = torch.stack([network.logits(torch.tensor(again.films.pixels)) for network in own]).mean(dim=0)
    expected = bundle.calibration.probabilities(logits.numpy())
    found = load_engine(bundle)(again.films.pixels)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    # the limit is that of the fold that the first network did not learn from
    distances = found.distance[: len(again.held_out[0].films)]
    assert bundle.distance_limit() == pytest.approx(1.5 * distances.max(), rel=1e-3)
    card = (tmp_path / "bundle" / "card.html").read_text()
    assert "scored by one of 3 models" in card
    assert "dealt to folds (blocks:3)" in card


def test_an_interrupted_training_goes_on_with_the_fold_it_stood_at(
    dataset: str, weights: str, films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, info = recipe_of(weights, Folds(count=3)), read_dataset_info(dataset)
    whole = fit_folds(recipe, films, info, dataset)
    whole.kept.forget()
    trained: list[int] = []
    fit_recipe = fold_models.fit_recipe

    def interrupted(*arguments):
        if len(trained) == 2:
            trained.append(0)
            raise KeyboardInterrupt
        trained.append(1)
        return fit_recipe(*arguments)

    monkeypatch.setattr(fold_models, "fit_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, str(tmp_path / "bundle"), recipe)
    kept = tmp_path / "rayscan-cache" / "folds"
    assert len(list(kept.iterdir())) == 2
    train(dataset, str(tmp_path / "bundle"), recipe)
    assert trained == [1, 1, 0, 1]
    assert list(kept.iterdir()) == []
    state = load_bundle(tmp_path / "bundle").network().state_dict()
    for name, value in whole.fitted.state_dict.items():
        torch.testing.assert_close(state[name], value, msg=name)


def test_a_grid_has_no_model_of_a_fold(dataset: str, weights: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe with a \[grid\] has no model for each fold"):
        train(dataset, str(tmp_path / "bundle"), replace(recipe_of(weights), grid={"width": [4, 8]}))


def test_a_recipe_says_its_folds(weights: str, tmp_path: Path) -> None:
    recipe = recipe_of(weights)
    (tmp_path / "own.toml").write_text(to_toml(recipe))
    assert read_recipe(str(tmp_path / "own.toml")) == replace(recipe, name="own")
    (tmp_path / "own.toml").write_text('model = "cnn"\nfolds = "weeks"\n')
    with pytest.raises(InputError, match=r"own.toml: unknown folds 'weeks'"):
        read_recipe(str(tmp_path / "own.toml"))


def test_held_out_films_are_scored_by_their_own_model(dataset: str, weights: str, films: Films) -> None:
    together = fit_folds(recipe_of(weights), films, read_dataset_info(dataset), dataset)
    together.kept.forget()
    one: HeldOut = together.held_out[1]
    score = one.scorer(UNCALIBRATED, torch.device("cpu"))
    odds = one.fitted.val_logits[:, 1] - one.fitted.val_logits[:, 0]
    np.testing.assert_allclose(score(one.films.pixels), 1 / (1 + np.exp(-odds)), atol=1e-4)
