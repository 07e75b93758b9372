"""One real search with Ray Tune and Optuna: interrupted, resumed; and what the resumed sampler knows."""

import json
import logging
import math
import os
import re
import shutil
import signal
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.experiment import Trial

from models.errors import InputError, RayscanError
from models.spec import Scalar
from models.statistics.metrics import auc
from pipelines.bundles import fetch_bundle
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tests.tuning.films import SIZE, write_dataset
from tuning.search.driver import search
from tuning.search.ledger import Ledger
from tuning.search.rounds import has_converged
from tuning.search.settings import SearchSettings
from tuning.search.suggestions import suggestions
from tuning.search.trial import (
    METRIC,
    OBJECTIVE,
    TAKEN_UP,
    TIME,
    Progress,
    TrialJob,
    kind_of,
    parameters_of,
    plan_of,
)
from tuning.spaces.domain import Suggest
from tuning.spaces.space import KIND, SearchSpace, leaves
from tuning.spaces.space_file import space_for
from tuning.study.records import StartedTrial, StudySummary, TrialRecord
from tuning.study.store import FINDINGS, read_trials, unfinished_trials, write_trials
from tuning.study.trial_files import load_weights, weights_key
from tuning.training.loop import fit
from tuning.training.objectives import LOG_SCORE

SMALL = SearchSettings(trials=6, epochs=2, grace_epochs=1, max_concurrent=1)
BREAKS, KILLED, CTRL_C = 2, 3, 5


class Eventful(SearchSpace):
    """A space whose third trial cannot be trained, and at whose sixth suggestion somebody presses Ctrl-C."""

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        constants = super().__call__(trial)
        number = getattr(trial, "number", None)
        if number == BREAKS and TAKEN_UP not in trial.user_attrs:
            return {**constants, "accumulate": 0}
        if number == CTRL_C:
            os.kill(os.getpid(), signal.SIGINT)
        return constants


SPACE = Eventful(**vars(space_for(SIZE, families=("cnn",))))


@dataclass(frozen=True)
class Run:
    dataset: str
    out: str
    summary: StudySummary
    records: list[TrialRecord]


@pytest.fixture(scope="module")
def interrupted(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search of six trials that ends with the fifth."""
    folder = tmp_path_factory.mktemp("search")
    dataset, out = str(folder / "dataset"), str(folder / "study")
    write_dataset(dataset)
    summary = search(dataset, out, SMALL, space=SPACE)
    return Run(dataset, out, summary, read_trials(open_store(out)))


def test_ctrl_c_ends_with_the_best_so_far(interrupted: Run) -> None:
    assert [record.number for record in interrupted.records] == list(range(CTRL_C))
    assert interrupted.summary.ran == sum(interrupted.summary.trials.values()) == CTRL_C
    best = max((record for record in interrupted.records if record.value is not None), key=lambda one: one.result)
    assert (interrupted.summary.best_trial, interrupted.summary.auc) == (best.trial_id, best.auc)
    assert json.loads(json.dumps(interrupted.summary.to_json()))["study"] == f"file://{interrupted.out}"


def test_the_baselines_come_first(interrupted: Run) -> None:
    majority, mlp, *others = interrupted.records
    assert (majority.model, majority.auc, majority.epochs, majority.status) == ("majority", 0.5, 1, "complete")
    assert (mlp.model, mlp.status) == ("mlp", "complete")
    assert {record.model for record in others} == {"cnn"}
    assert [record.kind for record in interrupted.records] == ["baseline"] * 2 + ["search"] * 3


def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(interrupted: Run) -> None:
    failed = [record for record in interrupted.records if record.status == "failed"]
    assert [record.number for record in failed] == [BREAKS]
    assert failed[0].error is not None
    assert failed[0].error.startswith("InputError: accumulate=0")
    assert (failed[0].auc, failed[0].epochs, failed[0].history) == (None, 0, [])
    assert interrupted.summary.trials["failed"] == 1


def test_each_trial_leaves_its_best_epoch(interrupted: Run) -> None:
    for record in interrupted.records:
        if record.status == "failed":
            continue
        best = max(record.history, key=lambda epoch: epoch["objective"])
        reached = (best["objective"], best["val_auc"], len(record.history))
        assert (record.objective, record.auc, record.epochs) == reached
        assert load_weights(open_store(interrupted.out), record.trial_id)


def test_what_came_of_it_stands_at_the_study(interrupted: Run) -> None:
    found = json.loads(open_store(interrupted.out).get(FINDINGS))
    judged = {record.trial_id: record.auc for record in interrupted.records if record.status != "failed"}
    assert {name: trial["auc"]["value"] for name, trial in found["trials"].items()} == judged
    assert found["selection"]["auc"] == interrupted.summary.auc
    assert found["selection"]["elsewhere"] == interrupted.summary.auc_elsewhere
    bundle = fetch_bundle(interrupted.summary.bundle)
    assert bundle.evaluation["val"]["selection"]["elsewhere"] == interrupted.summary.auc_elsewhere


def test_the_bundle_beats_majority(interrupted: Run) -> None:
    bundle = fetch_bundle(interrupted.summary.bundle)
    assert bundle.model_id == interrupted.summary.model_id
    val = load_films(interrupted.dataset, "val")
    with torch.inference_mode():
        probability = bundle.classifier()(torch.tensor(val.pixels)).numpy()[:, 1]
    assert auc(val.labels, probability) == pytest.approx(interrupted.summary.auc, abs=1e-9)
    assert interrupted.summary.auc > 0.5


def as_killed_after_its_first_epoch(store: Store, number: int, dataset: str) -> TrialRecord:
    """Put a study back to where a trial had done one epoch: no row, and the checkpoint that the trial would put."""
    records = read_trials(store)
    (record,) = [one for one in records if one.number == number]
    write_trials(store, [one for one in records if one is not record])
    store.delete(weights_key(record.trial_id))
    info, train, val = read_dataset_info(dataset), load_films(dataset, "train"), load_films(dataset, "val")
    job = TrialJob(
        study=store, preprocessing=info.preprocessing, epochs=2, seed=0, threads=1, device="cpu", objective=LOG_SCORE,
    )  # fmt: skip
    progress = Progress(job, record.trial_id, None, lambda report: None)
    plan = plan_of(record.parameters, job)
    fit(plan.spec, train, val, plan.training, on_epoch=lambda report, state: not progress.epoch(report, state))
    progress.settle()
    return record


def without_times(record: TrialRecord) -> dict[str, Any]:
    values = asdict(record)
    values["history"] = [{**epoch, "seconds": 0} for epoch in values["history"]]
    return {**values, "seconds": 0, "finished_at": None}


def test_resume_runs_only_what_is_left(
    interrupted: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    out = str(tmp_path / "study")
    shutil.copytree(interrupted.out, out)
    store = open_store(out)
    killed = as_killed_after_its_first_epoch(store, KILLED, interrupted.dataset)
    resumed = replace(SMALL, trials=7, resume=True)
    with caplog.at_level(logging.INFO, logger="rayscan"):
        summary = search(interrupted.dataset, out, resumed, space=SPACE)
    records = read_trials(open_store(out))
    for earlier, now in zip(interrupted.records, records, strict=False):
        assert without_times(now) == without_times(earlier)
        assert now == earlier or now.number == KILLED
    (taken_up,) = [line for line in caplog.records if "begun before" in line.getMessage()]
    # The killed one, and the one that Ctrl-C came upon, if its process had taken it.
    assert re.match("3 trials to run, [12] of them begun before", taken_up.getMessage())
    assert [epoch["epoch"] for epoch in records[KILLED].history] == [1, 2]
    weights, unbroken = (load_weights(place, killed.trial_id) for place in (store, open_store(interrupted.out)))
    assert all(torch.equal(value, weights[name]) for name, value in unbroken.items())
    assert not list(Path(out).glob("trials/*/checkpoint.safetensors"))
    assert [record.number for record in records] == list(range(7))
    assert summary.ran == 3
    added = records[CTRL_C:]
    assert not any(record.kind == "baseline" for record in added)
    for record in added:
        assert all(record.parameters != earlier.parameters for earlier in interrupted.records)
    assert summary.objective == max(record.value for record in records if record.value is not None)
    told = [line.getMessage() for line in caplog.records if "best" in line.getMessage()]
    assert len(told) == 3
    assert "7 of 7 trials" in told[-1]
    assert capsys.readouterr().out == ""  # stdout is for results


def test_a_network_over_the_limit_of_the_latency_is_not_trained(interrupted: Run, tmp_path: Path) -> None:
    limited = replace(SMALL, trials=2, objectives=("auc", "latency<=0.000001"))
    with pytest.raises(RayscanError, match=r"every trial .* failed: not trained: a film takes .* more than the limit"):
        search(interrupted.dataset, str(tmp_path / "study"), limited, space=SPACE)
    records = read_trials(open_store(str(tmp_path / "study")))
    assert [(record.status, record.epochs, record.auc) for record in records] == [("pruned", 0, None)] * 2
    assert all(record.latency_ms for record in records)


def test_a_finished_study_runs_nothing(interrupted: Run) -> None:
    done = replace(SMALL, trials=CTRL_C, resume=True)
    summary = search(interrupted.dataset, interrupted.out, done, space=SPACE)
    assert (summary.ran, summary.model_id) == (0, interrupted.summary.model_id)


def test_what_is_refused(interrupted: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        search(interrupted.dataset, interrupted.out, SMALL, space=SPACE)
    with pytest.raises(InputError, match="search space"):
        search(interrupted.dataset, interrupted.out, replace(SMALL, resume=True, families=("mlp",)))
    other = str(tmp_path / "dataset")
    write_dataset(other, fingerprint="others", seed=1)
    with pytest.raises(InputError, match="fingerprint"):
        search(other, interrupted.out, replace(SMALL, resume=True), space=SPACE)
    with pytest.raises(InputError, match="one trial needs"):
        search(interrupted.dataset, str(tmp_path / "new"), replace(SMALL, cpus_per_trial=64, max_concurrent=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trials", 0),
        ("epochs", 0),
        ("patience", -1),
        ("grace_epochs", 0),
        ("cpus_per_trial", 0),
        ("reduction_factor", 1),
        ("gpus_per_trial", -1.0),
        ("gpus_per_trial", 1.5),
        ("gpus_per_trial", float("nan")),
        ("max_concurrent", 0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}"):
        SearchSettings(**{name: value})
    with pytest.raises(InputError, match="time budget is 0"):
        SearchSettings(time_budget_s=0)


def record(number: int, parameters: dict[str, Any], status: Any = "complete") -> TrialRecord:
    return TrialRecord(
        trial_id=f"trial{number}",
        number=number,
        kind=kind_of(parameters),
        status=status,
        model=parameters["family"],
        parameters=parameters_of(parameters),
        auc=None if status == "failed" else 0.5 + number / 100,
        epochs=1,
        history=[],
        seconds=1.0,
        seed=0,
        finished_at=datetime(2026, 11, 20, tzinfo=UTC),
    )


def suggest(space: SearchSpace, earlier: list[TrialRecord], settings: SearchSettings, count: int) -> list[Any]:
    """What the search would run next; every suggestion is finished before the next."""
    searcher, _ = suggestions(space, earlier, settings)
    drawn = []
    for number in range(count):
        drawn.append(searcher.suggest(str(number)))
        searcher.on_trial_complete(str(number), {OBJECTIVE: 0.6, TIME: 1, "finished": True})
    return drawn


def test_the_ledger_enters_what_was_stopped_with_what_it_reached(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    earlier = [record(7, {"family": "mlp"})]
    ledger = Ledger(store, earlier, planned=5, seed=3, deadline=time.monotonic() + 60)
    config = {"family": "cnn", "resolution": 32}
    trials = [Trial("run_trial", config=config, trial_id=name, stub=True) for name in ("a", "b", "c", "d")]
    for trial in (trials[1], trials[0], trials[3], trials[2]):
        ledger.on_trial_start(0, trials, trial)
    reports = {
        "a": {METRIC: 0.9, TIME: 2, "history": "[{}, {}]", "seconds": 2.5, "finished": False},
        "b": {METRIC: 0.8, TIME: 3, "history": "[{}, {}, {}]", "seconds": 3.5, "finished": True},
        "c": {METRIC: 0.7, TIME: 1, "history": "[{}]", "seconds": 1.5, "finished": False},
    }
    for trial in trials[:3]:
        trial.update_last_result(dict(reports[trial.trial_id]))
    ledger.on_trial_complete(1, trials, trials[1])
    ledger.on_trial_complete(1, trials, trials[0])
    assert len(read_trials(store)) == 3
    ledger.close()  # c was in its second epoch, d in its first
    ledger.close()
    rows = {row.trial_id: (row.number, row.status, row.auc, row.epochs) for row in read_trials(store)[1:]}
    assert rows == {"a": (8, "pruned", 0.9, 2), "b": (9, "complete", 0.8, 3), "c": (10, "pruned", 0.7, 1)}
    (unfinished,) = unfinished_trials(store, read_trials(store))
    assert unfinished == StartedTrial(trial_id="d", number=11, seed=3, parameters=config)


def test_a_trial_that_ray_puts_at_the_end_keeps_its_number(tmp_path: Path) -> None:
    ledger = Ledger(open_store(str(tmp_path)), [], planned=4, seed=0, deadline=math.inf)
    taken_up = {TAKEN_UP: {"trial_id": "old", "number": 9, "seed": 5}}
    configs: list[dict[str, Any]] = [{}, taken_up, {}, {}]
    trials = [
        Trial("t", config={"family": "cnn", **more}, trial_id=f"{n}", stub=True) for n, more in enumerate(configs)
    ]
    ledger.on_trial_start(0, trials[:3], trials[0])
    retried = [*trials[1:3], trials[0], trials[3]]
    for trial in retried:
        ledger.on_trial_start(1, retried, trial)
    assert ledger.numbers == {"0": 0, "1": 9, "2": 1, "3": 2}


def test_a_trial_that_dies_before_any_has_begun_keeps_its_number(tmp_path: Path) -> None:
    """Ray Tune puts it at the end before it tells of anything."""
    ledger = Ledger(open_store(str(tmp_path)), [], planned=3, seed=0, deadline=math.inf)
    trials = [Trial("t", config={"family": "cnn"}, trial_id=f"{n}", stub=True) for n in range(3)]
    ledger.on_step_end(0, trials)
    ledger.on_trial_start(1, [*trials[1:], trials[0]], trials[1])
    assert ledger.numbers == {"0": 0, "1": 1, "2": 2}


@pytest.mark.parametrize(
    ("aucs", "patience", "converged"),
    [
        ([0.9, 0.95, 0.9501, 0.94], 2, True),
        ([0.9, 0.95, 0.9501, 0.94], 3, False),
        ([0.9, 0.9003, 0.9006], 2, False),  # small gains add up
        ([0.9, None, None], 2, True),
        ([None, None], 3, False),
        ([0.9] * 50, 0, False),
        ([], 1, False),
    ],
)
def test_a_search_has_converged_when_nothing_is_gained(
    aucs: list[float | None], patience: int, converged: bool
) -> None:
    ended = datetime(2026, 11, 20, tzinfo=UTC)
    records = [
        replace(record(n, {"family": "cnn"}), auc=auc, finished_at=ended + timedelta(minutes=n))
        for n, auc in enumerate(aucs)
    ]
    assert has_converged(records[::-1], patience, gain=0.0005) is converged


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_resumed_search_suggests_something_new(kind: Any) -> None:
    space = space_for(128)
    settings = SearchSettings(search=kind, trials=40)
    first = suggest(space, [], settings, 20)
    assert [drawn["family"] for drawn in first[:2]] == ["majority", "mlp"]
    assert first == suggest(space, [], settings, 20)
    earlier = [record(number, parameters) for number, parameters in enumerate(first)]
    earlier[3] = record(3, first[3], "failed")
    second = suggest(space, earlier, settings, 10)
    assert not any(KIND in drawn for drawn in second)
    assert not any(drawn in first for drawn in second)
    assert suggestions(space, earlier, settings)[1] == 20
    assert suggestions(space, earlier, replace(settings, trials=5))[1] == 0


def test_a_baseline_that_did_not_finish_comes_again() -> None:
    earlier = [record(0, {"family": "majority", KIND: "baseline"})]
    drawn = suggest(space_for(128), earlier, SearchSettings(), 2)
    assert (drawn[0]["family"], kind_of(drawn[0]), kind_of(drawn[1])) == ("mlp", "baseline", "search")


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_unfinished_trials_come_first_and_are_not_suggested_again(kind: Any) -> None:
    space, settings = space_for(128), SearchSettings(search=kind, trials=30)
    first = suggest(space, [], settings, 8)
    earlier = [record(number, first[number]) for number in (0, 2, 4, 5, 6)]
    unfinished = [
        StartedTrial(trial_id=f"t{n}", number=n, seed=3, parameters=parameters_of(first[n]), kind=kind_of(first[n]))
        for n in (1, 3, 7)
    ]
    searcher, wanted = suggestions(space, earlier, settings, unfinished=unfinished)
    assert wanted == 25
    drawn = [searcher.suggest(str(number)) for number in range(10)]
    for trial, taken_up in zip(unfinished, drawn, strict=False):
        assert taken_up == {
            **first[trial.number],
            TAKEN_UP: {"trial_id": trial.trial_id, "number": trial.number, "seed": 3},
        }
    assert not any(TAKEN_UP in fresh or KIND in fresh or fresh in first for fresh in drawn[3:])


def test_a_grid_is_visited_whole_and_once_even_when_resumed() -> None:
    space = space_for(32, source="grid")
    settings = SearchSettings(search="grid", trials=1)
    points = leaves(space)
    _, wanted = suggestions(space, [], settings)
    assert wanted == len(points) + 2
    searcher, _ = suggestions(space, [], settings)
    drawn = [searcher.suggest(str(number)) for number in range(wanted)]  # all at a time
    assert drawn[2:] == points
    earlier = [record(number, parameters) for number, parameters in enumerate(drawn[:10])]
    assert suggest(space, earlier, settings, wanted - 10) == drawn[10:]
    assert suggestions(space, earlier, settings)[1] == wanted - 10


def test_how_many_trials_where_nobody_says() -> None:
    space = space_for(32)
    assert suggestions(space, [], SearchSettings())[1] == 20
    assert suggestions(space, [], SearchSettings(time_budget_s=60))[1] == math.inf
    assert suggestions(space, [], SearchSettings(time_budget_s=60, trials=7))[1] == 7
