"""What a study looks like in an Optuna storage; that a broken one ends no search, and that no password is shown."""

import logging
import math
import socket
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.experiment import Trial
from sqlalchemy import make_url

from models.errors import InputError
from pipelines.storage import open_store
from tuning.search.ledger import Ledger
from tuning.search.mirror import Mirror, _place
from tuning.search.trial import METRIC, TIME
from tuning.spaces.space_file import read_space
from tuning.study.records import TrialRecord
from tuning.study.store import read_trials

SPACE = read_space("cnn-grid")
NAME = "abc s3://studies/one"
ENDED = datetime(2026, 11, 20, 12, tzinfo=UTC)


def sampled(choice: int = 0) -> dict[str, Any]:
    """Parameters as Optuna gives them to a trial of the space."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=choice)).ask()
    SPACE(trial)
    return trial.params


def record(number: int, aucs: list[float], status: Any = "complete", **values: Any) -> TrialRecord:
    epochs = [
        {"epoch": place, "train_loss": 0.7, "val_auc": auc, "val_loss": 0.6, "seconds": 0.1}
        for place, auc in enumerate(aucs, 1)
    ]
    return TrialRecord(
        **{
            "trial_id": f"trial{number}",
            "number": number,
            "status": status,
            "model": "cnn",
            "parameters": sampled(number),
            "auc": max(aucs, default=None),
            "epochs": len(aucs),
            "history": epochs,
            "seconds": 90.0,
            "seed": 3,
            "finished_at": ENDED,
        }
        | values
    )


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "there").mkdir()
    return str(tmp_path / "there/mirror.log") if request.param == "journal" else f"sqlite:///{tmp_path}/there/mirror.db"


def load(storage: str, name: str = NAME) -> optuna.Study:
    """As optuna-dashboard opens it."""
    opened = RDBStorage(storage) if "://" in storage else JournalStorage(JournalFileBackend(storage))
    return optuna.load_study(study_name=name, storage=opened)


def test_trials_are_read_as_they_were(storage: str) -> None:
    mirror = Mirror(storage, NAME, ["auc"], SPACE)
    mirror.add_missing(
        [
            record(1, [0.7, 0.9, 0.8]),
            record(0, [], kind="baseline", parameters={"family": "majority"}, auc=0.5),
            record(2, [0.6], "pruned"),
            record(3, [], "failed", error="RuntimeError: no"),
        ]
    )
    mirror.close()
    study = load(storage)
    baseline, complete, pruned, failed = study.trials
    assert study.metric_names == ["auc"]
    assert study.best_trial.number == 1
    assert (complete.state, complete.value, complete.params) == (TrialState.COMPLETE, 0.9, sampled(1))
    assert set(complete.distributions) == set(complete.params)
    assert complete.intermediate_values == {1: 0.7, 2: 0.9, 3: 0.9}
    assert complete.user_attrs == {
        "trial_id": "trial1",
        "number": 1,
        "kind": "search",
        "status": "complete",
        "model": "cnn",
        "epochs": 3,
        "seconds": 90.0,
    }
    assert complete.datetime_complete is not None
    assert complete.datetime_complete.astimezone(UTC) == ENDED
    assert complete.duration is not None
    assert complete.duration.total_seconds() == 90
    assert (baseline.state, baseline.value, baseline.params) == (TrialState.COMPLETE, 0.5, {})
    assert (baseline.user_attrs["kind"], baseline.user_attrs["parameters"]) == ("baseline", {"family": "majority"})
    assert (pruned.state, pruned.value, pruned.intermediate_values) == (TrialState.PRUNED, 0.6, {1: 0.6})
    assert (failed.state, failed.value, failed.params) == (TrialState.FAIL, None, sampled(3))


def test_several_objectives(storage: str) -> None:
    mirror = Mirror(storage, NAME, ["latency", "auc"], SPACE)
    probe = {"family": "densenet121", "l2": 0.1}
    mirror.add_missing(
        [
            record(0, [0.9, 0.8], latency_ms=4.0),
            record(1, [0.7], "pruned", latency_ms=2.0),
            record(2, [], kind="probe", parameters=probe, auc=0.95),
        ]
    )
    mirror.close()
    study = load(storage)
    assert study.metric_names == ["auc", "latency"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [[0.9, 4.0], [0.7, 2.0], None]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [trial.user_attrs["status"] for trial in study.trials] == ["complete", "pruned", "complete"]
    assert {trial.number for trial in study.best_trials} == {0, 1}


def test_a_resumed_search_adds_what_is_missing_and_nothing_twice(storage: str) -> None:
    records = [record(number, [0.5 + number / 10]) for number in range(4)]
    first = Mirror(storage, NAME, ["auc"], SPACE)
    first.add_missing(records[:1])
    first.add_missing(records[:2])
    first.close()
    other = Mirror(storage, "another study", ["auc"], SPACE)
    other.add_missing(records[2:3])
    other.close()
    again = Mirror(storage, NAME, ["auc"], SPACE)
    again.add_missing(records)
    again.add_missing(records)
    again.close()
    assert [trial.user_attrs["trial_id"] for trial in load(storage).trials] == [one.trial_id for one in records]


def test_the_same_name_with_other_objectives(storage: str) -> None:
    Mirror(storage, NAME, ["auc"], SPACE).close()
    with pytest.raises(InputError, match="directions maximize, but this search has maximize, minimize"):
        Mirror(storage, NAME, ["auc", "latency"], SPACE)


def test_a_failure_warns_and_is_made_good_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    storage = str(folder / "mirror.journal")
    records = [record(number, [0.5]) for number in range(3)]
    mirror = Mirror(storage, NAME, ["auc"], SPACE)
    mirror.add_missing(records[:1])
    folder.rename(away)
    with caplog.at_level(logging.WARNING):
        mirror.add_missing(records[:2])
        mirror.add_missing(records)
    assert len(caplog.records) == 2
    assert "mirror.journal was not written to (FileNotFoundError" in caplog.text
    away.rename(folder)
    mirror.add_missing(records)
    assert [trial.user_attrs["number"] for trial in load(storage).trials] == [0, 1, 2]


def test_a_study_that_somebody_deletes_ends_no_search(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(storage, NAME, ["auc"], SPACE)
    mirror.add_missing([record(0, [0.5])])
    study = load(storage)
    optuna.delete_study(study_name=NAME, storage=study._storage)
    with caplog.at_level(logging.WARNING):
        mirror.add_missing([record(0, [0.5]), record(1, [0.5])])
    mirror.close()
    assert len(caplog.records) == 1


def test_the_ledger_writes_it_and_mends_it_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    storage = str(folder / "mirror.log")
    earlier = [record(0, [0.5]), record(1, [], kind="probe", parameters={"family": "densenet121"}, auc=0.8)]
    ledger = Ledger(
        open_store(str(tmp_path / "study")),
        earlier,
        planned=3,
        seed=0,
        deadline=math.inf,
        mirror=Mirror(storage, NAME, ["auc"], SPACE),
    )
    trial = Trial("run_trial", config=sampled(), trial_id="a", stub=True)
    ledger.on_trial_start(0, [trial], trial)
    history = '[{"epoch": 1, "val_auc": 0.75, "val_loss": 0.5}]'
    trial.update_last_result({METRIC: 0.75, TIME: 1, "history": history, "seconds": 2.5, "finished": True})
    folder.rename(away)
    with caplog.at_level(logging.WARNING):
        ledger.on_trial_complete(1, [trial], trial)
    assert "was not written to" in caplog.text
    assert len(read_trials(ledger.study)) == 3
    away.rename(folder)
    ledger.close()
    assert [(one.user_attrs["trial_id"], one.value) for one in load(storage).trials] == [
        ("trial0", 0.5),
        ("trial1", 0.8),
        ("a", 0.75),
    ]


def test_pickled_it_is_empty(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s3cr3t.db"
    mirror = Mirror(storage, NAME, ["auc"], SPACE)
    assert b"s3cr3t" not in cloudpickle.dumps(mirror)
    mirror.close()


@pytest.mark.parametrize(
    ("storage", "what"),
    [
        ("study.db", "neither a journal file nor a database's URL"),
        ("s3://bucket/study.log", "s3:// is no Optuna storage"),
        ("redis://bob:s3cr3t@host/0", "redis:// is no Optuna storage"),
        ("postgres://bob:s3cr3t@host/db", "postgres:// is no Optuna storage.* postgresql://"),
        ("sqlite://", "sqlite:// is no Optuna storage"),
        ("postgresql://bob:s3cr3t@host:port/db", "neither"),
        ("postgresql://bob:s3@cr3t@host/db", "%40"),
        ("postgresql+none://bob:s3cr3t@host/db", "driver that SQLAlchemy does not know"),
        ("mysql+oursql_none://bob:s3cr3t@host/db", "driver that SQLAlchemy does not know"),
        ("postgresql+pg8000://bob:s3cr3t@host/db", "//host/db needs the package pg8000; pip install 'pg8000'"),
        ("mysql://bob:s3cr3t@host/db", "//host/db needs the package mysqldb; pip install 'mysqlclient'"),
        ("sqlite:////no/such/folder/study.db", "sqlite:////no/such/folder/study.db cannot be used: OperationalError"),
        ("/no/such/folder/study.log", "study.log cannot be used: FileNotFoundError"),
    ],
)
def test_what_is_no_storage(storage: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        Mirror(storage, NAME, ["auc"], SPACE)
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(secret in shown for secret in ("bob", "cr3t"))


def test_a_driver_that_quotes_the_credentials_is_not_quoted() -> None:
    place = _place(make_url("postgresql://bob:p%40ss@host/db?password=other"))
    error = OptunaError("Optuna's own words")
    error.__cause__ = OSError('no login of "bob" with p@ss, p%40ss or other\nand more')
    assert place.reason(error) == 'OSError: no login of "***" with ***, *** or ***'


@pytest.mark.parametrize("content", ["two\nlines\n", '{"level": "info"}\n{}\n'])
def test_another_log_file_is_no_journal(tmp_path: Path, content: str) -> None:
    path = tmp_path / "server.log"
    path.write_text(content)
    with pytest.raises(InputError, match="no Optuna journal"):
        Mirror(str(path), NAME, ["auc"], SPACE)
    assert path.read_text() == content


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_bytes(b"no database at all, but long enough for its header to be read as one" * 20)
    with pytest.raises(InputError, match="not a database"):
        Mirror(f"sqlite:///{path}", NAME, ["auc"], SPACE)


@pytest.mark.parametrize(
    "credentials",
    ["bob:s3cr3t@{}", "bob:s3%7Bcr3t%7D@{}", "bob:s3cr%2F3t@{}", "{}?user=bob&password=s3cr3t"],
)
def test_an_unreachable_postgresql_shows_no_password(credentials: str) -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as held:  # bound and not listening: the port refuses, and nobody else takes it
        held.bind(("127.0.0.1", 0))
        host = f"localhost:{held.getsockname()[1]}/studies"
        before, _, query = credentials.partition("?")
        url = f"postgresql://{before.removesuffix('{}')}{host}" + (f"?{query}" if query else "")
        with pytest.raises(InputError, match=r"postgresql.*localhost.*/studies cannot be used: .*refused") as caught:
            Mirror(url, NAME, ["auc"], SPACE)
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(secret in shown for secret in ("bob", "s3cr", "cr3t"))
