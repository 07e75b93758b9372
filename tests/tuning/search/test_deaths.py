"""Searches in which a trial's process dies as it starts, before there is anything of the trial."""

import copy
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from models.spec import Scalar
from pipelines.storage import open_store
from tests.tuning.films import SIZE, write_dataset
from tuning.search.driver import search
from tuning.search.ledger import RETRIES, Ledger
from tuning.search.settings import SearchSettings
from tuning.search.trial import TAKEN_UP
from tuning.spaces.space import SearchSpace, Suggest
from tuning.spaces.space_file import space_for
from tuning.study.records import TrialRecord
from tuning.study.store import CHECKPOINT, read_trials, unfinished_trials
from tuning.training.objectives import AUC, LATENCY

SETTINGS = SearchSettings(trials=3, epochs=1, grace_epochs=1, max_concurrent=1)


class Deadly(str):
    """A value that ends the Ray worker that reads it, `deaths` times, counted in a file; elsewhere it is a text."""

    tally: Path
    deaths: int

    @classmethod
    def of(cls, text: str, tally: Path, deaths: int) -> "Deadly":
        value = cls(text)
        value.tally, value.deaths = tally, deaths
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Deadly":
        return copy.copy(self)

    def __copy__(self) -> "Deadly":
        return Deadly.of(str(self), self.tally, self.deaths)

    def __reduce__(self) -> tuple[Callable[..., str], tuple[str, Path, int]]:
        return _read, (str(self), self.tally, self.deaths)


def _read(text: str, tally: Path, deaths: int) -> str:
    if ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        with tally.open("a") as file:
            file.write("x")
        if tally.stat().st_size <= deaths:
            os._exit(1)
    return text


@dataclass(frozen=True, kw_only=True)
class DeadlySpace(SearchSpace):
    """A space of which one suggestion ends the process that gets it."""

    number: int
    deadly: Deadly

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        constants = super().__call__(trial)
        number = trial.user_attrs.get(TAKEN_UP, {}).get("number", getattr(trial, "number", None))
        return {**constants, "optimiser": self.deadly} if number == self.number else constants


def search_with_deaths(folder: Path, number: int, deaths: int, *, at_a_time: int = 1) -> list[TrialRecord]:
    """The trials of a small search, of which one's process dies so many times as it starts."""
    dataset, out = str(folder / "dataset"), str(folder / "study")
    write_dataset(dataset)
    deadly = Deadly.of("adamw", folder / "deaths", deaths)
    space = DeadlySpace(number=number, deadly=deadly, **vars(space_for(SIZE, families=("mlp",))))
    search(dataset, out, replace(SETTINGS, max_concurrent=at_a_time), space=space)
    store = open_store(out)
    records = read_trials(store)
    assert [record.model for record in records] == ["majority", "mlp", "mlp"]
    assert [record.number for record in records] == [0, 1, 2]
    assert unfinished_trials(store, records) == []
    return records


@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_process_always_dies_as_it_starts_fails_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It dies in the process of the trial before it, where Ray Tune gives up at once, and then in two of its own."""
    with caplog.at_level(logging.INFO, logger="rayscan"):
        records = search_with_deaths(tmp_path, number=2, deaths=99)
    assert (tmp_path / "deaths").stat().st_size == 1 + RETRIES
    assert [record.status for record in records] == ["complete", "complete", "failed"]
    assert (records[2].epochs, records[2].auc) == (0, None)
    assert str(records[2].error).startswith("ActorDiedError: ")
    told = [line.getMessage() for line in caplog.records if line.getMessage().startswith("trial 2")]
    assert [line.rpartition("; ")[2] for line in told[:-1]] == ["it is tried again"] * RETRIES
    assert told[-1].startswith("trial 2 mlp failed: ActorDiedError: ")


def test_a_trial_goes_on_from_an_epoch_that_was_stored_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its node fell between the two."""
    study = open_store(str(tmp_path))
    ledger = Ledger(study, [], planned=1, seed=0, deadline=math.inf)
    trial = SimpleNamespace(trial_id="a", config={}, last_result={}, num_failures=1, pickled_error_file=None)
    with caplog.at_level(logging.WARNING, logger="rayscan"):
        ledger.on_trial_recover(1, [trial], trial)
        study.put(f"trials/a/{CHECKPOINT}", b"an epoch")
        ledger.on_trial_recover(2, [trial], trial)
    told = [record.getMessage().rpartition("; ")[2] for record in caplog.records]
    assert told == ["it is tried again", "it goes on from its last epoch"]


class Broken(SearchSpace):
    """A space whose third trial cannot be trained."""

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        constants = super().__call__(trial)
        return {**constants, "accumulate": 0} if getattr(trial, "number", None) == 2 else constants


@pytest.mark.usefixtures("ray_session")
def test_of_two_objectives_a_trial_that_cannot_be_trained_lacks_one_and_fails(tmp_path: Path) -> None:
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "study")
    write_dataset(dataset)
    space = Broken(**vars(space_for(SIZE, families=("mlp",))))
    search(dataset, out, replace(SETTINGS, objectives=(AUC, LATENCY)), space=space)
    records = read_trials(open_store(out))
    assert [record.status for record in records] == ["complete", "complete", "failed"]
    assert records[2].latency_ms is None
    assert str(records[2].error).startswith("InputError: accumulate=0")


@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_process_died_once_as_it_started_is_tried_again(tmp_path: Path) -> None:
    """The first trial, whose process is its own; it keeps its number, though Ray Tune puts it behind the second."""
    records = search_with_deaths(tmp_path, number=0, deaths=1, at_a_time=2)
    assert (tmp_path / "deaths").stat().st_size > 1
    assert [record.status for record in records] == ["complete"] * 3
