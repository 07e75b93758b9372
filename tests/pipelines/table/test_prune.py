"""Old runs go, and whatever somebody still needs stays: the scores, unfinished runs, and what later nights read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import IncompleteError, InputError
from pipelines.storage import Store, open_store
from pipelines.table import prune as module
from pipelines.table.compact import compact
from pipelines.table.delta import open_table
from pipelines.table.erase import erase
from pipelines.table.lease import held_lease
from pipelines.table.prune import Pruning, _needed, _Run, check_keep, prune
from pipelines.table.query import ask
from pipelines.table.record import earlier_records
from tests.pipelines.table.parts import commit_part
from tests.servers import S3Server

WEEK = timedelta(days=7)


@pytest.fixture(params=["local", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "scores"))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return open_store(f"{server.bucket()}/scores")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "scores"))


@pytest.fixture
def two_nights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift looks back two nights instead of thirty."""
    monkeypatch.setattr(module, "NIGHTS", 2)


def write_run(store: Store, days: int, model: str = "m1", *, planned: int = 3, finished: bool = True) -> str:
    """A run that was planned and finished so many days ago; the older, the smaller its id."""
    run = f"{20_000 - days}-{model}"
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    known = {"run_id": run, "model_id": model, "planned": planned, "listed": 3, "date": at[:10]}
    store.put(f"runs/{run}/plan/00000.parquet", b"rows")
    store.put(f"runs/{run}/plan.json", json.dumps(known).encode())
    store.put(f"runs/{run}/end.json", b"{}")
    if finished:
        store.put(f"runs/{run}/report.html", b"a page")
        store.put(f"runs/{run}/run.json", json.dumps({**known, "counts": {"scored": 3}, "finished": at}).encode())
    if planned:
        commit_part(store, run, 0, [f"{run}/{number}" for number in range(planned)], model_id=model)
    return run


def folders(store: Store) -> list[str]:
    return sorted({info.key.split("/")[1] for chunk in store.list("runs") for info in chunk})


@pytest.mark.usefixtures("two_nights")
def test_old_runs_go_and_scores_stay(scores: Store) -> None:
    old = [write_run(scores, days) for days in (40, 30, 20)]
    young = [write_run(scores, days) for days in (6, 1)]
    other = write_run(scores, 35, "m2")
    before = ask(scores.root, "FROM scores ORDER BY ALL").to_pylist()
    would = prune(scores.root, WEEK, dry_run=True)
    assert folders(scores) == sorted([*old, *young, other]), "a dry run removes nothing"
    done = prune(scores.root, WEEK)
    assert done == Pruning(
        removed=old, objects=15, bytes=done.bytes, kept=3, kept_though_old=1, unfinished=0, dry_run=False
    )
    assert (would.removed, would.objects, would.bytes, would.dry_run) == (old, 15, done.bytes, True)
    assert folders(scores) == sorted([*young, other])
    assert ask(scores.root, "FROM scores ORDER BY ALL").to_pylist() == before
    assert [run for (run,) in map(dict.values, ask(scores.root, "SELECT run_id FROM runs").to_pylist())] == sorted(
        [other, *young]
    )
    assert prune(scores.root, WEEK).removed == []


@pytest.mark.usefixtures("two_nights")
def test_what_drift_and_reports_read_stays_however_old(local: Store) -> None:
    gone, *nights = (write_run(local, days) for days in (90, 80, 70))
    idle = [write_run(local, days, planned=0) for days in (60, 50)]
    before = [record["run_id"] for record in earlier_records(local, "m1")][-2:]
    done = prune(local.root, WEEK)
    assert done.removed == [gone, idle[0]]
    assert folders(local) == [*nights, idle[1]], "two nights for drift, and the newest run"
    assert [record["run_id"] for record in earlier_records(local, "m1")] == before == nights


@pytest.mark.usefixtures("two_nights")
def test_an_unfinished_run_stays_and_so_does_what_was_planned_after_it(local: Store) -> None:
    gone = write_run(local, 50)
    unfinished = write_run(local, 40, finished=False)
    later = [write_run(local, days) for days in (30, 20, 10)]
    local.put("runs/00000-half/plan/00000.parquet", b"of a driver that is planning, or died")
    done = prune(local.root, WEEK)
    assert (done.removed, done.unfinished) == ([gone], 1)
    assert folders(local) == ["00000-half", unfinished, *later]


@pytest.mark.usefixtures("two_nights")
def test_parts_of_runs_that_went_are_merged_all_the_same(local: Store) -> None:
    for days in (30, 20, 9, 8):
        write_run(local, days)
    unfinished = write_run(local, 1, finished=False)
    assert len(prune(local.root, WEEK).removed) == 2
    (day,) = compact(local.root)
    assert (day.parts_before, day.parts_after, day.rows) == (5, 2, 12)
    table = open_table(local)
    assert table
    assert [part.run_id for part in table.parts() if part.run_id] == [unfinished]


@pytest.mark.usefixtures("two_nights")
def test_a_pruning_that_dies_leaves_a_finished_run(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, *_ = (write_run(local, days) for days in (30, 20, 10))

    def dies(self: Store, keys: Sequence[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_all", dies)
        with pytest.raises(KeyboardInterrupt):
            prune(local.root, WEEK)
    assert not local.exists(f"runs/{run}/plan.json")
    assert local.exists(f"runs/{run}/run.json")
    assert prune(local.root, WEEK).removed == [run]
    assert run not in folders(local)


@pytest.mark.usefixtures("two_nights")
def test_nobody_scores_or_erases_meanwhile(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.table.lease.RENEW_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.table.lease.POLL_SECONDS", 0.05)
    for days in (30, 20, 10):
        write_run(local, days)
    with held_lease(local, "m1"), pytest.raises(IncompleteError, match="another run is at work here"):
        prune(local.root, WEEK)
    assert len(folders(local)) == 3
    assert len(prune(local.root, WEEK).removed) == 1


@pytest.mark.usefixtures("two_nights")
def test_a_patient_can_be_erased_after_the_plans_went(local: Store) -> None:
    for days in (30, 20, 10):
        local.delete_all([f"runs/{write_run(local, days)}/plan/00000.parquet"])  # these hold no rows
    assert len(prune(local.root, WEEK).removed) == 1
    uri = ask(local.root, "SELECT min(uri) AS uri FROM scores").to_pylist()[0]["uri"]
    done = erase(local.root, uris=[uri], agreed=lambda *_: True)
    assert done is not None
    assert (done.films, done.rows) == (1, 1)


@pytest.mark.parametrize("keep", [timedelta(0), timedelta(seconds=90), timedelta(days=99_999)])
def test_a_time_that_would_remove_everything_or_nothing_is_refused(keep: timedelta) -> None:
    with pytest.raises(InputError, match=r"^runs are kept for a day \(1d\) to a hundred years \(36500d\), not for "):
        check_keep(keep)


def test_nothing_was_ever_scored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run was recorded here"):
        prune(str(tmp_path), WEEK)


@dataclass(frozen=True)
class Drawn:
    model: int
    planned: int
    finished: bool


@given(st.lists(st.builds(Drawn, st.integers(0, 1), st.integers(0, 1), st.booleans()), max_size=50))
def test_of_any_runs_the_needed_ones_stay(drawn: list[Drawn]) -> None:
    runs = [
        _Run(
            run_id=f"{number:03d}",
            model_id=str(run.model),
            planned=run.planned,
            ended=datetime.now(UTC) if run.finished else None,
            objects=[],
        )
        for number, run in enumerate(drawn)
    ]
    needed = _needed(runs)
    for model in "01":
        mine = [run for run in runs if run.model_id == model]
        done = [run.run_id for run in mine if run.ended]
        assert {run.run_id for run in mine if run.ended is None} <= needed
        assert set(done[-1:]) <= needed
        assert {run.run_id for run in mine if run.ended and run.planned and run.run_id in done[-30:]} <= needed
        if len(done) == len(mine):
            assert len(needed & set(done)) <= 31
