"""One search with everything that goes before and after its trials: probes, finals, two objectives, a warm start."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import safetensors.torch
import torch

from models.errors import InputError
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from pipelines.errors import NotFoundError
from pipelines.storage import open_store
from tests.tuning.films import SIZE, write_dataset
from tuning.search.driver import search
from tuning.search.known_trials import best_of, final_trials
from tuning.search.probes import ProbeSpace, best_probes, feature_kinds
from tuning.search.settings import SearchSettings
from tuning.spaces.space import SearchSpace, leaves
from tuning.spaces.space_file import space_for
from tuning.study.records import StudySummary, TrialRecord, without_probes
from tuning.study.store import read_study, read_trials

BACKBONE = "mobilenetv3_small_050"
PROBES = 20
SPACE = """
base = "empty"
family = "mobilenetv3_small_050"
resolution = 24
batch_size = [32, 64]
[backbone]
weights = "WEIGHTS"
drop_rate = { low = 0.0, high = 0.5 }
[pretrained]
normalise = ["symmetric", "unit"]
head_first = [true, false]
l2 = { low = 1e-3, high = 1.0, log = true, when = { head_first = true } }
[probe]
l2 = { low = 1e-3, high = 1.0, log = true }
hidden = [0, 4]
"""


@dataclass(frozen=True)
class Run:
    dataset: str
    out: str
    settings: SearchSettings
    space: SearchSpace
    summary: StudySummary
    records: list[TrialRecord]
    log: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, weights and a file of a space."""
    folder = tmp_path_factory.mktemp("probes")
    write_dataset(str(folder / "dataset"), films=140)
    torch.manual_seed(0)
    network = build(ModelSpec(name=BACKBONE, preprocessing=Preprocessing(size=SIZE)))
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "space.toml").write_text(SPACE.replace("WEIGHTS", str(folder / "weights.safetensors")))
    return folder


@pytest.fixture(scope="module")
def run(ray_session: None, folder: Path) -> Run:
    """Twenty probes, two trials beside the baselines, and the better of them on larger films."""
    dataset, out = str(folder / "dataset"), str(folder / "study")
    settings = SearchSettings(
        trials=4, probes=PROBES, finals=1, epochs=1, grace_epochs=1, max_concurrent=1, objectives=("auc", "latency"),
        space=str(folder / "space.toml"),
    )  # fmt: skip
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda line: told.append(line.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("rayscan")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        summary = search(dataset, out, settings)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    space = space_for(SIZE, source=str(folder / "space.toml"))
    return Run(dataset, out, settings, space, summary, read_trials(open_store(out)), "\n".join(told))


def test_every_probe_is_a_row_and_no_trial(run: Run) -> None:
    probes = [record for record in run.records if record.kind == "probe"]
    assert [record.number for record in run.records] == list(range(PROBES + 5))
    assert [record.number for record in probes] == list(range(PROBES))
    assert len({record.trial_id for record in run.records}) == len(run.records)
    assert {record.parameters["normalise"] for record in probes} == {"symmetric", "unit"}
    assert {record.parameters["hidden"] for record in probes} == {0, 4}
    assert all(0 <= (record.auc or -1) <= 1 and record.seconds > 0 and record.epochs == 0 for record in probes)
    assert (run.summary.probes, sum(run.summary.trials.values()), run.summary.ran) == (PROBES, 5, 5)
    assert run.summary.best_number >= PROBES  # it is a model


def test_the_best_probes_are_fine_tuned_first(run: Run) -> None:
    linear = [record for record in run.records if record.kind == "probe" and record.parameters["hidden"] == 0]
    best: dict[Any, TrialRecord] = {}
    for record in sorted(linear, key=lambda record: (-(record.auc or 0), record.number)):
        best.setdefault(record.parameters["normalise"], record)
    trials = [record for record in run.records if record.kind == "search"]
    assert len(trials) == len(best) == 2
    for trial, probe in zip(trials, best.values(), strict=True):
        assert trial.parameters["pretrained_head_first"] is True
        assert trial.parameters["pretrained_l2"] == probe.parameters["l2"]
        assert trial.parameters["pretrained_normalise"] == probe.parameters["normalise"]
        assert trial.status == "complete", trial.error
    assert f"probe {next(iter(best.values())).number} " in run.log


def test_the_final_is_the_best_once_more_on_larger_films(run: Run) -> None:
    *others, final = run.records
    trials = [record for record in others if record.kind == "search"]
    best = max(trials, key=lambda record: record.value or 0)
    assert (final.kind, final.parameters) == ("final", {**best.parameters, "resolution": SIZE})
    assert final_trials(run.records, SIZE, 1) == []  # it is done
    assert final_trials(others, SIZE, 9)[0] == final.parameters


def test_every_trial_has_a_latency_and_the_winner_is_on_the_front(run: Run) -> None:
    trials = without_probes(run.records)
    assert all((record.latency_ms or 0) > 0 for record in trials)
    assert run.summary.best_number in run.summary.front
    best = next(record for record in trials if record.number == run.summary.best_number)
    assert best.auc == max(record.auc or 0 for record in trials)
    fastest = min(trials, key=lambda record: record.latency_ms or 0)
    assert fastest.number in run.summary.front


def test_what_is_done_is_not_done_again(run: Run) -> None:
    again = search(run.dataset, run.out, replace(run.settings, resume=True))
    assert (again.ran, again.probes, again.model_id) == (0, PROBES, run.summary.model_id)
    assert read_trials(open_store(run.out)) == run.records
    with pytest.raises(InputError, match="objectives"):
        search(run.dataset, run.out, replace(run.settings, resume=True, objectives=("auc",)))


def test_an_earlier_study_is_tried_first(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    fingerprint = read_study(open_store(run.out)).fingerprint
    with caplog.at_level(logging.INFO, logger="rayscan"):
        points = best_of(run.out, run.space, fingerprint)
    # the final's films are larger than this space's
    assert len(points) == 2
    ran = [record.parameters for record in run.records]
    assert all(point in ran for point in points)
    assert "same films" in caplog.text
    assert f"resolution={SIZE} lies outside" in caplog.text
    caplog.clear()
    assert best_of(run.out, space_for(SIZE, families=("cnn",)), "of others") == []
    assert "other films" in caplog.text
    assert f"{BACKBONE} is not searched" in caplog.text
    with pytest.raises(NotFoundError, match="no study"):
        best_of(f"{run.out}-not", run.space, fingerprint)


def test_a_kind_of_features_that_the_trials_do_not_have_is_told(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    tables = {**run.space.tables, "pretrained": {"normalise": run.space.tables["pretrained"]["normalise"]}}
    assert best_probes(run.records, replace(run.space, tables=tables)) == []
    assert "is not fine-tuned: head_first=True lies outside this space" in caplog.text


def test_a_space_without_weights_has_nothing_to_probe() -> None:
    with pytest.raises(InputError, match="no backbone of this space starts from weights"):
        feature_kinds(space_for(64, families=("cnn", BACKBONE)))


def test_every_kind_of_features_is_probed(folder: Path) -> None:
    space = space_for(SIZE, source=str(folder / "space.toml"), resolutions=(16, 24))
    chooser = ProbeSpace(kinds=feature_kinds(space), space=space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {json.dumps(dict(chooser(study.ask())[0].values)) for _ in range(60)}
    assert len(drawn) == len(chooser.kinds) == 4


def test_a_grid_with_a_range_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a grid needs a finite space"):
        search(run.dataset, str(tmp_path / "grid"), replace(run.settings, search="grid"))
    assert not (tmp_path / "grid").exists()
    with pytest.raises(InputError, match="a grid needs"):
        leaves(run.space)
