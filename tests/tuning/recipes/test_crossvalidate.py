"""Folds keep patients together, what is held out stays out, and pooled figures are those of the films' own calls."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from models.errors import InputError
from models.films import Films, join_films
from models.spec import DISCLAIMER, Preprocessing
from models.statistics.robustness import CHANGES
from pipelines.ingest.dataset import read_dataset_info
from pipelines.storage import open_store
from tests.models.synthetic import SIZE, blob_films
from tests.pipelines.datasets import write_dataset
from tests.pipelines.pages.samples import HOSTILE, read_page
from tests.tuning.recipes.conftest import CNN
from tuning.recipes.choices import Folds
from tuning.recipes.crossvalidate import FIGURES, crossvalidate, hold_out, summarise
from tuning.recipes.dealing import deal
from tuning.recipes.folds import Fold, KeptFolds
from tuning.recipes.recipe import Recipe
from tuning.training.settings import TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=16, augment=0.0, threads=1)


def of_patients(count: int, *, seed: int) -> Films:
    """Films of patients with one to four films each."""
    films = blob_films(count, seed=seed)
    sizes = np.random.default_rng(seed).integers(1, 5, count)
    names = np.repeat([f"patient-{seed}-{number}" for number in range(count)], sizes)[: count // 2]
    return replace(films, patients=np.concatenate([[f"{name}-well", f"{name}-ill"] for name in names]))


FILMS = join_films([of_patients(90, seed=3), of_patients(50, seed=1)])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    splits = {"train": of_patients(90, seed=3), "val": of_patients(50, seed=1), "test": blob_films(20, seed=2)}
    write_dataset(store, Preprocessing(size=SIZE), splits)
    store.delete("test.parquet")  # whoever reads the test films fails
    return store.root


def recipes(weights: str) -> Mapping[str, Recipe]:
    return {
        "cnn": Recipe(model="cnn", parameters=CNN, training=QUICK, calibrate="platt"),
        "head": Recipe(model="cnn", parameters=CNN, training=QUICK, weights=weights, learn="head"),
        "grid": Recipe(model="mlp", training=QUICK, grid={"width": [4, 8]}),
    }


@pytest.mark.parametrize("kind", ["cnn", "head", "grid"])
def test_nothing_of_a_fold_reaches_its_model(dataset: str, weights: str, kind: str) -> None:
    recipe, info, fold_of = recipes(weights)[kind], read_dataset_info(dataset), deal(FILMS, Folds(count=3), 0)
    own = fold_of == 2
    honest = hold_out(2, fold_of, FILMS, recipe, info, dataset)
    turned = replace(FILMS, labels=np.where(own, 1 - FILMS.labels, FILMS.labels))
    spoilt = replace(FILMS, pixels=np.where(own[:, None, None], FILMS.pixels[::-1], FILMS.pixels))
    other_labels, other_pixels = (hold_out(2, fold_of, films, recipe, info, dataset) for films in (turned, spoilt))
    np.testing.assert_array_equal(other_labels.probability, honest.probability)
    assert other_labels.robustness.auc == pytest.approx(1 - honest.robustness.auc), "the judge did see them"
    assert not np.array_equal(other_pixels.probability, honest.probability)
    for other in (other_labels, other_pixels):
        assert (other.calibration, other.val_auc, other.chosen) == (honest.calibration, honest.val_auc, honest.chosen)
    assert set(honest.chosen) == set(recipe.grid)


def held_out(dataset: str, recipe: Recipe, folds: int = 3) -> list[Fold]:
    fold_of = deal(FILMS, Folds(count=folds), recipe.training.seed)
    return [
        hold_out(number, fold_of, FILMS, recipe, read_dataset_info(dataset), dataset) for number in range(1, folds + 1)
    ]


def test_figures_are_those_of_the_calls_on_each_film(dataset: str, weights: str) -> None:
    recipe = recipes(weights)["head"]
    held = held_out(dataset, recipe)
    assert len({fold.calibration.threshold for fold in held}) == 3, "one threshold for all would not be told apart"
    found = summarise(held, FILMS, recipe, dataset, seconds=1.0)
    order = np.concatenate([fold.films for fold in held])
    assert sorted(order) == list(range(len(FILMS)))
    truth, probability = FILMS.labels[order], np.concatenate([fold.probability for fold in held])
    for point in ("rule_out", "balanced", "rule_in"):
        called = np.concatenate(
            [fold.probability >= np.float32(fold.calibration.operating_points[point]) for fold in held]
        )
        pooled = {name: figure["value"] for name, figure in found.pooled[point].items()}
        assert pooled["auc"] == pytest.approx(roc_auc_score(truth, probability))
        assert pooled["accuracy"] == pytest.approx((called == truth).mean())
        assert pooled["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, called))
        assert pooled["sensitivity"] == pytest.approx(recall_score(truth, called))
        assert pooled["specificity"] == pytest.approx(recall_score(1 - truth, ~called))
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found.pooled[point].values())
        for name in FIGURES:
            of_folds = [fold["operating_points"][point][name] for fold in found.folds]
            over = found.over_folds[point][name]
            assert over["mean"] == pytest.approx(np.mean(of_folds))
            assert over["sd"] == pytest.approx(np.std(of_folds, ddof=1))
            assert over["worst"] == min(of_folds) == of_folds[int(over["worst_fold"]) - 1]
    changed = [[fold.robustness.changed[change]["auc"] for change in CHANGES] for fold in held]
    assert found.under_shift["auc"]["mean"] == pytest.approx(np.mean(changed))
    assert found.under_shift["auc"]["worst"] == np.min(changed)
    worst_fold, worst_change = np.unravel_index(np.argmin(changed), (3, len(CHANGES)))
    assert found.under_shift["auc"]["worst_fold"] == worst_fold + 1
    assert found.under_shift["auc"]["worst_change"] == list(CHANGES)[worst_change]


def test_the_same_seed_gives_the_same_figures_and_a_page_that_says_them(
    dataset: str, weights: str, tmp_path: Path
) -> None:
    recipe = recipes(weights)["head"]
    path = tmp_path / "cv.html"
    first = crossvalidate(dataset, recipe, folds=Folds(count=3), report=str(path))
    again = crossvalidate(dataset, recipe, folds=Folds(count=3))
    assert (first.pooled, first.under_shift) == (again.pooled, again.under_shift)
    other = crossvalidate(dataset, replace(recipe, training=replace(QUICK, seed=1)), folds=Folds(count=3))
    assert other.pooled != first.pooled
    assert first.films == 140
    assert first.report == f"file://{path}"
    page = read_page(path.read_text())
    assert DISCLAIMER in page.text
    assert "test was not read" in page.text
    for name in FIGURES:
        figure = first.pooled["balanced"][name]
        assert f"{figure['value']:.3f} ({figure['low']:.3f}\N{EN DASH}{figure['high']:.3f})" in page.text
    assert [f"{fold['fold']} {fold['films']} " in page.text for fold in first.folds] == [True] * 3
    assert all(change in page.text for change in CHANGES)
    assert len(page.charts) == 2


def test_kinds_of_pneumonia_are_judged_as_disease(dataset: str) -> None:
    classes = ("NORMAL", "VIRUS", "BACTERIA")
    recipe = Recipe(model="cnn", parameters=CNN, training=QUICK, classes=classes)
    found = crossvalidate(dataset, recipe, folds=Folds(count=2))
    assert (found.films, found.positives) == (140, 70)


def test_a_grid_is_searched_within_each_fold(dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(model="mlp", about=HOSTILE, training=QUICK, grid={"width": [4, 16]})
    found = crossvalidate(dataset, recipe, folds=Folds(count=2), report=str(tmp_path / "cv.html"))
    assert all(fold["chosen"]["width"] in {4, 16} for fold in found.folds)
    page = read_page((tmp_path / "cv.html").read_text())
    assert f"width {found.folds[0]['chosen']['width']}" in page.text
    assert HOSTILE in page.text


def test_an_interrupted_run_goes_on_where_it_stood_and_leaves_nothing(
    dataset: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes(weights)["head"]
    whole = crossvalidate(dataset, recipe, folds=Folds(count=3))
    done: list[int] = []

    def interrupted(number: int, *rest: Any) -> Fold:
        if number == 3 and len(done) < 3:
            done.append(number)
            raise KeyboardInterrupt
        done.append(number)
        return hold_out(number, *rest)

    monkeypatch.setattr("tuning.recipes.crossvalidate.hold_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        crossvalidate(dataset, recipe, folds=Folds(count=3))
    kept = tmp_path / "rayscan-cache" / "folds"
    assert len(list(kept.iterdir())) == 2
    with pytest.raises(InputError, match="a report is one file"):
        crossvalidate(dataset, recipe, folds=Folds(count=3), report=str(tmp_path))
    again = crossvalidate(dataset, recipe, folds=Folds(count=3))
    assert done == [1, 2, 3, 3], "each fold once, the third after it was interrupted"
    assert (again.pooled, again.under_shift) == (whole.pooled, whole.under_shift)
    assert list(kept.iterdir()) == []


def test_folds_of_another_recipe_other_weights_or_other_films_are_not_taken(
    dataset: str, weights: str, tmp_path: Path
) -> None:
    recipe = recipes(weights)["head"]
    (fold,) = held_out(dataset, recipe)[:1]
    KeptFolds("films", recipe, Folds(count=3)).keep(fold)
    found = KeptFolds("films", recipe, Folds(count=3)).read(1)
    assert found is not None
    assert found.to_json() == fold.to_json()
    np.testing.assert_array_equal(found.probability, fold.probability)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, other)
    for strange in (
        KeptFolds("others", recipe, Folds(count=3)),
        KeptFolds("films", recipe, Folds(count=4)),
        KeptFolds("films", replace(recipe, training=replace(QUICK, seed=1)), Folds(count=3)),
        KeptFolds("films", replace(recipe, weights=str(other)), Folds(count=3)),
    ):
        assert strange.read(1) is None
    (path,) = (tmp_path / "rayscan-cache" / "folds").iterdir()
    path.write_text("{}")
    with pytest.raises(InputError, match="is not a fold; remove it"):
        KeptFolds("films", recipe, Folds(count=3)).read(1)
