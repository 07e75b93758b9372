"""What is tried before the sampler is asked, and with what a pretrained trial starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from pipelines.storage import open_store
from tests.tuning.films import SIZE, write_dataset
from tests.tuning.study.test_store import record
from tuning.recipes.recipe import read_recipe
from tuning.search.known_trials import final_trials, usual_trials
from tuning.search.settings import SearchSettings
from tuning.search.suggestions import suggestions
from tuning.search.trial import OBJECTIVE, TrialJob, kind_of, parameters_of, plan_of, start_of
from tuning.spaces.space import to_plan
from tuning.spaces.space_file import space_for
from tuning.study.records import TrialRecord
from tuning.training.films import read_training_films
from tuning.training.objectives import LATENCY

MOBILENET = "mobilenetv2_035"
FILMS = Preprocessing(size=224, decode="exact")
POINT = {"family": "cnn", "resolution": 64, "cnn_depth": 3}


def finished(number: int, auc: float, config: dict[str, Any], **values: Any) -> TrialRecord:
    """A trial with this configuration, as the search would record it."""
    own = {"kind": kind_of(config), "parameters": parameters_of(config), "model": config["family"]}
    return record(number, auc, **own, **values)


def test_points_come_after_the_baselines_and_once() -> None:
    space, settings = space_for(64), SearchSettings(trials=5)
    searcher, wanted = suggestions(space, [], settings, points=[POINT])
    drawn = [searcher.suggest(str(number)) for number in range(4)]
    assert wanted == 5
    assert [kind_of(one) for one in drawn] == ["baseline", "baseline", "search", "search"]
    assert POINT.items() <= drawn[2].items()  # what it leaves open, the sampler chose
    assert "learning_rate" in drawn[2]
    earlier = [finished(number, 0.6, one) for number, one in enumerate(drawn[:3])]
    searcher, wanted = suggestions(space, earlier, settings, points=[POINT])
    assert wanted == 2
    assert searcher.suggest("next") != drawn[2]


WEIGHTS = "/weights/mobilenet.safetensors"


@pytest.mark.parametrize(
    ("family", "recipe", "weights"), [("cnn", "cnn-best", None), (MOBILENET, "mobilenet", WEIGHTS)]
)
def test_a_search_begins_with_the_recipes_that_come_along(family: str, recipe: str, weights: str | None) -> None:
    space = space_for(224, families=(family,), weights=weights)
    (point,) = usual_trials(space)
    wanted = read_recipe(recipe)
    plan = to_plan(point, preprocessing=FILMS, epochs=wanted.training.epochs, seed=0)
    spec = ModelSpec(
        name=family,
        parameters={**wanted.parameters, **({"drop_rate": 0.0} if weights else {})},
        preprocessing=replace(FILMS, size=wanted.size, decoded_size=224, normalise=wanted.normalise),
    )
    assert plan.spec == spec
    assert replace(plan.training, objective="auc") == wanted.training
    assert (plan.weights, plan.head is not None) == (weights, wanted.head_first)
    if plan.head is not None:
        assert plan.head.l2 == wanted.head.l2


def test_recipes_outside_the_space_are_left_out(tmp_path: Path) -> None:
    small = space_for(96, families=("cnn",))
    (point,) = usual_trials(small)
    assert (point["resolution"], point["cnn_depth"], point["augment"]) == (
        96,
        5,
        0.75,
    )  # on the largest films
    path = tmp_path / "space.toml"
    path.write_text("jpeg = 0.0\n")
    (point,) = usual_trials(space_for(224, source=str(path)))
    assert (point["cnn_depth"], point["augment"]) == (4, 0.5)  # the defaults
    (backbone,) = usual_trials(space_for(224, families=(MOBILENET,)))  # from random weights
    assert "pretrained_learning_rate" not in backbone


def test_finals_are_given_whole_and_are_no_trials_of_the_search() -> None:
    space, settings = space_for(64), SearchSettings(trials=3)
    searcher, _ = suggestions(space, [], settings, points=[POINT])
    *_, drawn = [searcher.suggest(str(number)) for number in range(3)]
    best = record(7, 0.9, parameters=drawn, model="cnn")
    (final,) = final_trials([best, record(8, 0.8)], 224, 3)
    assert final == {**drawn, "resolution": 224}
    searcher, wanted = suggestions(space, [best], settings, finals=[final])
    drawn_final = searcher.suggest("a")
    assert drawn_final is not None
    assert (wanted, kind_of(drawn_final), parameters_of(drawn_final)) == (1, "final", final)
    done = record(9, 0.95, parameters=final, model="cnn", kind="final")
    assert final_trials([best, done], 224, 3) == []
    assert suggestions(space, [best, done], settings)[1] == 2
    assert suggestions(space, [best, done], settings, finals=[final])[1] == 0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_two_objectives_are_known_again() -> None:
    space, settings = space_for(64), SearchSettings(trials=30, objectives=(LATENCY, "sensitivity@specificity=0.9"))
    searcher, _ = suggestions(space, [], settings)
    drawn = []
    for number in range(4):
        drawn.append(searcher.suggest(str(number)))
        searcher.on_trial_complete(str(number), {OBJECTIVE: 0.5 + number / 10, LATENCY: 3.0 - number})
    earlier = [finished(number, 0.9, one, objective=0.5, latency_ms=2.0) for number, one in enumerate(drawn)]
    searcher, _ = suggestions(space, earlier, settings)
    known: Any = searcher._ot_study
    assert [trial.values for trial in known.get_trials(deepcopy=False)] == [[0.5, 2.0]] * 2  # baselines are not sampled
    assert [direction.name for direction in known.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_trials_share_the_features_that_their_classifiers_are_fitted_to(tmp_path: Path) -> None:
    write_dataset(str(tmp_path / "dataset"), films=140)
    films = read_training_films(str(tmp_path / "dataset"))
    torch.manual_seed(0)
    network = build(ModelSpec(name="mobilenetv3_small_050", preprocessing=Preprocessing(size=SIZE)))
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    job = TrialJob(
        study=open_store(str(tmp_path)), preprocessing=films.info.preprocessing, epochs=1, seed=0, threads=1,
        device="cpu", features=str(tmp_path / "features"),
    )  # fmt: skip
    starts = []
    for drop_rate, head_first in ((0.0, True), (0.3, True), (0.3, False)):
        config = {
            "family": "mobilenetv3_small_050", "backbone_weights": str(tmp_path / "weights.safetensors"),
            "backbone_drop_rate": drop_rate, "pretrained_head_first": head_first, "pretrained_l2": 0.1,
        }  # fmt: skip
        start = start_of(plan_of(config, job), films, job)
        assert start is not None
        starts.append(start)
    assert len(list((tmp_path / "features").iterdir())) == 2  # of train and val, for all of them
    torch.testing.assert_close(starts[0], starts[1])
    assert not torch.equal(starts[0]["classifier.weight"], starts[2]["classifier.weight"])
    assert torch.equal(starts[0]["conv_stem.weight"], starts[2]["conv_stem.weight"])
    assert start_of(plan_of({"family": "cnn"}, job), films, job) is None
