"""The best trials are judged anew on patients that had no say: not in the choice, nor in what judges them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from models.errors import InputError
from models.films import Films
from models.spec import Preprocessing
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tests.tuning.films import SIZE, write_dataset
from tests.tuning.spaces.test_space import draws, with_weights
from tests.tuning.study.test_store import INFO, record
from tuning.recipes.choices import Folds
from tuning.recipes.crossvalidate import hold_out
from tuning.recipes.dealing import deal
from tuning.recipes.fitting import fit_recipe
from tuning.recipes.recipe import read_recipe, spec_of, to_toml
from tuning.spaces.space import to_plan
from tuning.spaces.space_file import space_for
from tuning.study.confirm import (
    Confirmed,
    Dealt,
    FoldJob,
    HeldOut,
    confirm,
    deal_train,
    held_out,
    one_after_another,
    recipe_of,
)
from tuning.study.findings import add_confirmed, conclude
from tuning.study.records import TrialRecord
from tuning.study.store import FINDINGS, begin_study
from tuning.training.films import TrainingFilms
from tuning.training.loop import fit

FOLDS = 3


def parameters(width: int, **others: Any) -> dict[str, Any]:
    return {"family": "mlp", "mlp_side": 16, "mlp_width": width, "batch_size": 20, "augment": 0.0, **others}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("confirm") / "dataset")
    write_dataset(uri, films=210)
    return uri


@pytest.fixture(scope="module")
def info(dataset: str) -> DatasetInfo:
    return read_dataset_info(dataset)


@pytest.fixture(scope="module")
def sides(dataset: str) -> tuple[Films, Films]:
    return load_films(dataset, "train"), load_films(dataset, "val")


@pytest.fixture(scope="module")
def dealt(dataset: str, info: DatasetInfo, sides: tuple[Films, Films]) -> Dealt:
    return deal_train(*sides, info, dataset, folds=FOLDS, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "study"))
    begin_study(store, INFO, resume=False)
    return store


def ranked() -> list[TrialRecord]:
    return [record(4, 0.99, parameters=parameters(16)), record(1, 0.98, parameters=parameters(8))]


def job(fold: int = 2, **others: Any) -> FoldJob:
    recipe = recipe_of(parameters(16, **others), preprocessing=Preprocessing(size=SIZE), epochs=2, seed=1)
    return FoldJob(trial_id="some", fold=fold, recipe=recipe)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_a_recipe_makes_what_its_trial_made(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    space = with_weights(space_for(224, families=("mlp", "cnn", "resnet18"), resolutions=(32, 224)))
    films = Preprocessing(size=224, decode="exact")
    info = DatasetInfo(size=224, preprocessing=films, fingerprint="", counts={}, parts={})
    path = tmp_path_factory.mktemp("recipes") / "it.toml"
    for drawn in draws(space, seed, 4):
        plan = to_plan(drawn, preprocessing=films, epochs=7, seed=5, objective="auc")
        recipe = recipe_of(drawn, preprocessing=films, epochs=7, seed=5, about="Mine.")
        assert spec_of(recipe, info, "films") == plan.spec
        assert (recipe.training, recipe.weights, recipe.learn) == (plan.training, plan.weights, "all")
        head = replace(recipe.head, seed=recipe.training.seed) if recipe.head_first else None
        assert head == plan.head
        path.write_text(to_toml(recipe), encoding="utf-8")
        assert read_recipe(str(path)) == replace(recipe, name="it")


def test_following_a_recipe_gives_the_weights_of_its_trial(
    dataset: str, info: DatasetInfo, sides: tuple[Films, Films]
) -> None:
    chosen = parameters(8, resolution=24, learning_rate=0.003, optimiser="sgd")
    plan = to_plan(chosen, preprocessing=info.preprocessing, epochs=2, seed=3)
    recipe = recipe_of(chosen, preprocessing=info.preprocessing, epochs=2, seed=3)
    films = TrainingFilms(uri=dataset, info=info, train=sides[0], val=sides[1])
    wanted, found = fit(plan.spec, *sides, plan.training), fit_recipe(recipe, films).best
    assert found.spec.preprocessing.size == 24
    for name, value in wanted.state_dict.items():
        np.testing.assert_array_equal(found.state_dict[name], value)


def test_patients_by_whom_the_search_chose_are_in_no_fold(
    dataset: str, info: DatasetInfo, sides: tuple[Films, Films], dealt: Dealt
) -> None:
    train, val = sides
    of_val = np.isin(dealt.films.scan_ids, val.scan_ids)
    np.testing.assert_array_equal(dealt.fold_of == 0, of_val)
    np.testing.assert_array_equal(dealt.fold_of[~of_val], deal(train, Folds(by="blocks", count=FOLDS), 0))
    both = replace(train, patients=np.where(np.arange(len(train)) < 9, val.patients[0], train.patients))
    again = deal_train(both, val, info, dataset, folds=FOLDS, seed=1)
    assert set(again.fold_of[again.films.patients == val.patients[0]]) == {0}
    assert (again.fold_of == 0).sum() == len(val) + 9


def test_too_few_patients_are_refused_with_a_way_out(
    dataset: str, info: DatasetInfo, sides: tuple[Films, Films]
) -> None:
    train, val = sides
    with pytest.raises(InputError, match=r"cannot be dealt to 5 folds .* leave out --confirm"):
        deal_train(train.take(np.arange(8)), val, info, dataset, seed=0)


def test_a_model_knows_nothing_of_its_fold_and_scores_as_a_cross_validation_does(dealt: Dealt) -> None:
    honest = held_out(job(), dealt)
    own = dealt.fold_of == 2
    whole = hold_out(2, dealt.fold_of, dealt.films, job().recipe, dealt.info, dealt.dataset)
    np.testing.assert_array_equal(honest.probability, whole.probability)
    turned = replace(dealt.films, labels=np.where(own, 1 - dealt.films.labels, dealt.films.labels))
    np.testing.assert_array_equal(held_out(job(), replace(dealt, films=turned)).probability, honest.probability)
    of_val = replace(dealt.films, labels=np.where(dealt.fold_of == 0, 1 - dealt.films.labels, dealt.films.labels))
    assert not np.array_equal(held_out(job(), replace(dealt, films=of_val)).probability, honest.probability)


def test_figures_are_of_films_held_out_in_whatever_order_the_folds_end(store: Store, dealt: Dealt) -> None:
    held: list[HeldOut] = []

    def backwards(jobs: Sequence[FoldJob], dealt: Dealt) -> Iterable[HeldOut]:
        held.extend(one_after_another(jobs[::-1], dealt))
        return held

    found = confirm(store, ranked(), dealt, run=backwards)
    assert [(one.number, one.trial_id, one.films) for one in found] == [(4, "trial4", 150), (1, "trial1", 150)]
    judged = dealt.fold_of > 0
    for one in found:
        probability = np.full(len(dealt.films), np.nan)
        of_folds = []
        for fold in (of for of in held if of.trial_id == one.trial_id):
            own = dealt.fold_of == fold.fold
            probability[own] = fold.probability
            of_folds.append(roc_auc_score(dealt.films.labels[own], fold.probability))
        assert one.auc is not None
        assert one.pooled is not None
        assert one.auc["mean"] == pytest.approx(np.mean(of_folds))
        assert one.auc["sd"] == pytest.approx(np.std(of_folds, ddof=1))
        assert one.pooled["value"] == pytest.approx(roc_auc_score(dealt.films.labels[judged], probability[judged]))
        assert one.pooled["low"] < one.pooled["value"] < one.pooled["high"]
        assert one.optimism == pytest.approx(one.search_auc - np.mean(of_folds))
        assert one.in_short()["auc"] == one.auc["mean"]
    assert found[0].search_auc == 0.99
    assert found[0].auc != found[1].auc
    epochs = {fold.recipe.training.epochs for fold in jobs_of(store, dealt)}
    assert epochs == {INFO.epochs}, "as many as a trial of the search has"


def jobs_of(store: Store, dealt: Dealt, known: Sequence[Confirmed] = ()) -> list[FoldJob]:
    """The jobs that would be run; none is."""
    asked: list[FoldJob] = []

    def ask(jobs: Sequence[FoldJob], _: Dealt) -> Iterable[HeldOut]:
        asked.extend(jobs)
        return [HeldOut(trial_id=one.trial_id, fold=one.fold, error="not run") for one in jobs]

    confirm(store, ranked(), dealt, run=ask, known=known)
    return asked


def test_what_is_known_of_the_same_folds_is_not_trained_again(store: Store, dealt: Dealt) -> None:
    (first,) = confirm(store, ranked()[:1], dealt)
    assert [one.trial_id for one in jobs_of(store, dealt, [first])] == ["trial1"] * FOLDS
    assert len(jobs_of(store, dealt, [replace(first, seed=7)])) == 2 * FOLDS
    assert confirm(store, ranked()[:1], dealt, run=one_after_another, known=[first]) == [first]


def test_a_recipe_that_cannot_be_trained_is_told_and_the_others_are_judged(store: Store, dealt: Dealt) -> None:
    wild = record(7, 0.97, parameters=parameters(16, learning_rate=10.0, optimiser="sgd", clip_norm=0.0))
    found = confirm(store, [wild, *ranked()[:1]], dealt)
    assert found[0].auc is found[0].pooled is found[0].optimism is None
    assert ": RayscanError: training of mlp diverged" in str(found[0].error)
    assert found[0].in_short() == {"number": 7, "error": found[0].error}
    assert found[1].error is None
    assert found[1].auc is not None


def test_findings_keep_what_was_confirmed(store: Store, info: DatasetInfo, sides: tuple[Films, Films]) -> None:
    _, val = sides
    found = conclude(store, ranked(), INFO, dataset=info, val=val)
    assert list(found.confirmed) == []
    figures = {"mean": 0.9, "sd": 0.01, "worst": 0.8, "worst_fold": 2}
    pooled = {"value": 0.91, "low": 0.9, "high": 0.92}
    first = Confirmed(
        trial_id="trial4", number=4, folds=5, seed=1, films=150, search_auc=0.99, auc=figures, pooled=pooled,
        optimism=0.09, seconds=3.0,
    )  # fmt: skip
    failed = replace(first, trial_id="trial1", number=1, auc=None, pooled=None, optimism=None, error="fold 1: no")
    found = add_confirmed(store, found, [first])
    assert json.loads(store.get(FINDINGS))["confirmed"][0]["optimism"] == 0.09
    found = add_confirmed(store, conclude(store, ranked(), INFO, dataset=info, val=val), [failed])
    assert list(found.confirmed) == [failed, first]
    assert found.in_short()["confirmed"] == [failed.in_short(), first.in_short()]
    assert first.in_short() == {
        "number": 4, "auc": 0.9, "sd": 0.01, "low": 0.9, "high": 0.92, "search_auc": 0.99, "optimism": 0.09
    }  # fmt: skip
    store.put(FINDINGS, b"[")
    assert list(conclude(store, [], INFO, dataset=info, val=val).confirmed) == []


def test_the_recipes_of_the_three_best_are_kept(store: Store, info: DatasetInfo, sides: tuple[Films, Films]) -> None:
    records = [record(0, None, "failed"), record(2, 0.6), record(3, 0.5), *ranked()]
    conclude(store, records, INFO, dataset=info, val=sides[1])
    names = sorted(key.key for chunk in store.list("recipes") for key in chunk)
    assert names == ["recipes/1.toml", "recipes/2.toml", "recipes/4.toml"]
    recipe = read_recipe(str(Path(store.root.removeprefix("file://")) / "recipes" / "4.toml"))
    wanted = recipe_of(parameters(16), preprocessing=info.preprocessing, epochs=3, seed=3, about=recipe.about)
    assert recipe == replace(wanted, name="trial 4")
    assert "0.9900" in recipe.about
