"""How a run ended lies beside its plan, whatever ended it, without what a library or a URL may hold of a secret."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import AccessError, ClusterError, IncompleteError, InputError, RayscanError, StorageError
from pipelines.scoring import runs
from pipelines.scoring.attempts import begin_attempt, located, newest_attempts
from pipelines.scoring.ending import LONGEST, RunEnd, read_end, told_safely
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.plan import Plan
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.scoring.score import ScoreShard
from pipelines.storage import Store, open_store
from tests.pipelines.scoring.archive import BAD, GOOD, plan_of

TOTAL = GOOD + len(BAD)
SETTINGS = ScoreSettings(shard_size=TOTAL, report=False)


def planned(out: Store, archive: Store, bundle: Path) -> Plan:
    """An unfinished run of one shard, whose driver died before it began."""
    return plan_of(out, archive, bundle, shard_size=TOTAL)


@pytest.fixture
def written(tmp_path: Path, archive: Store, bundle: Path) -> tuple[Store, Plan]:
    """The same, after its only part was written: to finish it, no Ray is needed."""
    out = open_store(str(tmp_path / "scores"))
    plan = planned(out, archive, bundle)
    ScoreShard(out.root, plan, choose_layout(1, 0, 1))({"shard": np.array([0])})
    return out, plan


def test_a_finished_run_says_so_once_it_is_recorded(written: tuple[Store, Plan], archive: Store, bundle: Path) -> None:
    out, plan = written
    out.put(f"runs/{plan.run_id}/end.json", b'{"of": "the attempt before"}')
    told: list[RunEnd] = []
    resumed, new = score(archive.root, str(bundle), out.root, SETTINGS, ended=told.append)
    assert [end.run_id for end in told] == [resumed.run_id, new.run_id] != [plan.run_id] * 2
    end = told[0]
    assert read_end(out, plan.run_id) == replace(end, under_way=[], alarms=[])
    assert (end.state, end.exit_code, end.error, end.told) == ("finished", 0, None, None)
    assert (end.node, end.pid) == (socket.gethostname(), os.getpid())
    assert (end.planned, end.shards, end.done, end.counts) == (TOTAL, 1, 1, dict(resumed.counts))
    assert end.peak_bytes is not None
    assert end.free_bytes is not None
    assert min(end.peak_bytes, end.free_bytes) > 10_000_000


WHAT_ENDS_A_RUN: list[tuple[BaseException, type[BaseException], dict[str, Any]]] = [
    (KeyboardInterrupt(), KeyboardInterrupt, {"state": "stopped", "exit_code": 130, "told": None}),
    (SystemExit(143), SystemExit, {"state": "stopped", "exit_code": 143, "error": "SystemExit", "told": None}),
    (StorageError("s3://b: down"), IncompleteError, {"state": "store_failed", "exit_code": 3, "error": "StorageError"}),
    (AccessError("s3://b: denied"), IncompleteError, {"state": "store_failed", "error": "AccessError"}),
    (
        ClusterError("Ray could not continue (ActorDiedError: the actor died)"),
        ClusterError,
        {
            "state": "workers_lost",
            "exit_code": 3,
            "told": "Ray could not continue (ActorDiedError: the actor died)",
        },
    ),
    (IncompleteError("1 of 2 shards"), IncompleteError, {"state": "incomplete", "exit_code": 3}),
    (
        InputError("no node has so much"),
        InputError,
        {"state": "refused", "exit_code": 2, "told": "no node has so much"},
    ),
    (
        ZeroDivisionError("DOE^JANE"),
        ZeroDivisionError,
        {"state": "fault", "exit_code": 1, "error": "ZeroDivisionError", "told": None},
    ),
]


@pytest.mark.parametrize(("error", "raised", "wanted"), WHAT_ENDS_A_RUN, ids=lambda value: type(value).__name__)
def test_what_ended_a_run_is_written_and_goes_on_its_way(
    written: tuple[Store, Plan],
    archive: Store,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    wanted: dict[str, Any],
) -> None:
    out, plan = written
    begin_attempt(out, plan.run_id, 0)

    def ends_here(*_: object) -> None:
        raise error

    monkeypatch.setattr(runs, "reconcile", ends_here)
    told: list[RunEnd] = []
    with pytest.raises(raised):
        score(archive.root, str(bundle), out.root, SETTINGS, ended=told.append)
    data = out.get(f"runs/{plan.run_id}/end.json")
    content = json.loads(data)
    assert {name: content[name] for name in wanted} == wanted
    assert (content["done"], content["shards"], content["counts"]) == (1, 1, None)
    assert content["under_way"] == [], "the shard is written, whatever markers it has"
    assert [end.state for end in told] == [wanted["state"]]
    assert b"DOE" not in data


def test_a_driver_that_lost_its_lease_leaves_the_end_to_the_other(
    written: tuple[Store, Plan], archive: Store, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plan = written

    def taken_over(*_: object) -> None:
        out.put(f"leases/model={plan.model_id}/00001000.json", b'{"owner": "another", "process": null}')
        out.put(f"runs/{plan.run_id}/end.json", b"{}")
        raise IncompleteError("another run has taken over")

    monkeypatch.setattr(runs, "reconcile", taken_over)
    monkeypatch.setattr("pipelines.table.lease.Lease.is_lost", property(lambda self: True))
    told: list[RunEnd] = []
    with pytest.raises(IncompleteError):
        score(archive.root, str(bundle), out.root, SETTINGS, ended=told.append)
    assert [end.state for end in told] == ["taken_over"]
    assert out.get(f"runs/{plan.run_id}/end.json") == b"{}"


def test_a_store_that_takes_no_note_changes_nothing(
    written: tuple[Store, Plan],
    archive: Store,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, plan = written
    put: Callable[..., None] = Store.put

    def full(self: Store, key: str, data: bytes) -> None:
        if key.endswith("/end.json"):
            raise StorageError("no space left")
        put(self, key, data)

    monkeypatch.setattr(Store, "put", full)
    (record, _) = score(archive.root, str(bundle), out.root, SETTINGS)
    assert record.counts["scored"] == GOOD
    assert caplog.messages[-1].endswith("how it ended was not written (no space left)")
    assert read_end(out, plan.run_id) is None


def test_an_attempt_says_where_it_was_begun(tmp_path: Path) -> None:
    out = open_store(str(tmp_path))
    for shard in (3, 1, 3):
        begin_attempt(out, "run", shard)
    out.put("runs/run/attempts/00007.0", b"")  # of an earlier version
    attempts = located(out, "run", newest_attempts(out, "run"))
    assert [(attempt.shard, attempt.number) for attempt in attempts] == [(1, 0), (3, 1), (7, 0)]
    assert attempts[2].where is None
    for attempt in attempts[:2]:
        assert attempt.where
        assert (attempt.where.node, attempt.where.pid) == (socket.gethostname(), os.getpid())


def test_what_a_url_may_hold_of_a_secret_is_not_told() -> None:
    error = StorageError("http://key:pass@host/b/a.dcm?sig=abc%3D&se=2026: is the store up?\nRun again")
    assert told_safely(error) == "http://…@host/b/a.dcm?… is the store up? Run again"
    assert told_safely(ValueError("anything")) is None


@given(st.text())
def test_what_is_told_is_one_line_of_bounded_length(text: str) -> None:
    told = told_safely(RayscanError(text))
    assert told is not None
    assert len(told) <= LONGEST
    assert len(told.splitlines()) <= 1
