"""What became of a run, told from what lies beside the scores."""

import json
import os
import re
import socket
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import Reason
from pipelines.errors import InputError, NotFoundError
from pipelines.scoring.attempts import begin_attempt
from pipelines.scoring.ending import IN_WORDS, RunEnd, State
from pipelines.scoring.explain import Explanation, explain
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.plan import Plan, make_plan
from pipelines.scoring.quarantine import Corner
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.scoring.score import ScoreShard
from pipelines.scoring.sink import part_key
from pipelines.storage import Store, open_store
from pipelines.table.delta import create_table
from pipelines.table.lease import TTL_SECONDS, _named, held_lease
from tests.pipelines.scoring.test_ending import TOTAL, planned
from tests.servers import S3Server


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "scores"))


def half_done(out: Store, archive: Store, bundle: Path) -> Plan:
    """An unfinished run of four shards: the first is written, and the second was begun twice."""
    plan = make_plan(
        out, source=archive.root, bundle=str(bundle), model_id="m1", operating_point="balanced", shard_size=4
    )
    out.put(part_key(plan, 0), b"a part, which nobody reads here")
    for _ in range(2):
        begin_attempt(out, plan.run_id, 1)
    return plan


def end_of(plan: Plan, state: State, **values: object) -> RunEnd:
    nothing = {"error": None, "told": None, "free_bytes": None, "peak_bytes": None, "last_shard": None, "deaths": {}}
    at = {"at": "2026-11-28T02:40:17+00:00", "node": "node1", "pid": 7, "planned": TOTAL, "shards": 4, "done": 1}
    known = {"run_id": plan.run_id, "model_id": "m1", "state": state, "exit_code": 3, "under_way": []}
    return RunEnd(**{**nothing, **at, **known, **values})  # type: ignore[arg-type]


def write_end(out: Store, end: RunEnd) -> None:
    out.put(f"runs/{end.run_id}/end.json", json.dumps(asdict(end)).encode())


def line(told: Explanation, name: str) -> str:
    """What stands behind this word."""
    found = [text[10:] for text in told.lines() if text.startswith(f"{name:<8}  ")]
    assert len(found) <= 1
    assert len(told.lines()) <= 10
    return found[0] if found else ""


def test_a_run_whose_driver_was_killed(out: Store, archive: Store, bundle: Path) -> None:
    plan = half_done(out, archive, bundle)
    dead = (_named(os.getpid()) or "").rsplit(" ", 1)[0] + " 1"
    lease = {"owner": "somebody", "process": dead, "host": "node9"}
    out.put("leases/model=m1/00000001.json", json.dumps(lease).encode())
    before = sorted(info.key for chunk in out.list() for info in chunk)
    told = explain(out.root)
    assert (told.run_id, told.standing, told.end, told.written, told.committed) == (
        plan.run_id,
        "unfinished",
        None,
        1,
        0,
    )
    assert line(told, "ended") == "without a word: killed, out of memory, or its machine lost"
    assert line(told, "shards") == "1 of 4 written, 0 of them in the table"
    assert re.fullmatch(
        rf"shard 1 begun .* UTC on {re.escape(socket.gethostname())} \(.* GB of memory free\), died 2 times, its films"
        r" are read in isolation",
        line(told, "attempts"),
    )
    assert line(told, "lease").startswith(f"stale: of process {os.getpid()} on node9, renewed ")
    again = f"rayscan score {archive.root} --model {plan.bundle} --out {out.root}"
    assert line(told, "next") == f"run the same command again, it resumes this run: {again}"
    assert sorted(info.key for chunk in out.list() for info in chunk) == before, "nothing is written"


def test_a_run_that_is_at_work(out: Store, archive: Store, bundle: Path) -> None:
    half_done(out, archive, bundle)
    with held_lease(out, "m1"):
        told = explain(out.root)
        assert told.standing == "at work"
        assert line(told, "ended") == ""
        assert ", died once, its films are read in isolation" in line(told, "attempts")
        assert line(told, "lease").startswith(f"held by process {os.getpid()} on {socket.gethostname()}, renewed ")
        assert line(told, "next").startswith("nothing, it is at work")
    told = explain(out.root)
    assert told.standing == "unfinished"
    assert line(told, "lease") == "free"
    assert line(told, "ended") == "in good order, but the store took no note of how"


def test_a_lease_of_another_machine_is_stale_after_its_time(out: Store, archive: Store, bundle: Path) -> None:
    half_done(out, archive, bundle)
    out.put("leases/model=all/00000004.json", b'{"owner": "somebody", "process": "boot pid:[1] 12 99"}')
    assert explain(out.root).standing == "at work"
    old = datetime.now(UTC).timestamp() - TTL_SECONDS - 5
    os.utime(out.path / "leases/model=all/00000004.json", (old, old))
    told = explain(out.root)
    assert told.standing == "unfinished"
    assert re.match(r"stale: of process 12 on \?, renewed 6[5-9] s ago;", line(told, "lease"))


@pytest.mark.parametrize("state", [state for state in IN_WORDS if state != "finished"])
def test_how_it_ended_and_what_to_do_first(out: Store, archive: Store, bundle: Path, state: State) -> None:
    plan = half_done(out, archive, bundle)
    values = {"error": "StorageError", "told": "s3://b: down\nand out", "free_bytes": 1_400_000_000, "last_shard": 0}
    write_end(out, end_of(plan, state, under_way=[1, 2, 3, 4, 5], **values))
    told = explain(out.root, plan.run_id)
    assert line(told, "ended") == (
        "2026-11-28 02:40 UTC on node1 (1.4 GB of memory free), exit code 3:"
        f" {IN_WORDS[state]} (StorageError): s3://b: down and out"
    )
    assert line(told, "shards") == (
        "1 of 4 written, 0 of them in the table; the last was 0; under way: 1, 2, 3, and 2 more"
    )
    first = line(told, "next").partition("run the same command again, it resumes this run: rayscan score ")[0]
    assert first.endswith(("", ", then "))
    hints = {"store_failed": "doctor", "workers_lost": "--memory", "refused": "mend", "fault": "traceback"}
    assert hints.get(state, "") in first
    assert bool(first) == (state in hints)


def test_folders_left_out_and_other_runs_are_named(out: Store, archive: Store, bundle: Path) -> None:
    plan = half_done(out, archive, bundle)
    other = make_plan(out, source=archive.root, bundle=str(bundle), model_id="m2", operating_point="balanced")
    for number in range(5):
        corner = Corner(prefix=f"s3://h/south{number}/", reason=Reason.ACCESS_DENIED, told="Forbidden")
        out.put(f"runs/{plan.run_id}/quarantine/{number}.json", json.dumps(asdict(corner)).encode())
    told = explain(out.root, plan.run_id)
    assert line(told, "left out").startswith("s3://h/south0/ (access_denied: Forbidden); s3://h/south1/ ")
    assert line(told, "left out").endswith("; and 2 more")
    assert line(told, "also") == f"unfinished: {other.run_id}"


def test_a_finished_run(out: Store, archive: Store, bundle: Path) -> None:
    plan = planned(out, archive, bundle)
    ScoreShard(out.root, plan, choose_layout(1, 0, 1))({"shard": np.array([0])})
    record, nothing_new = score(archive.root, str(bundle), out.root, ScoreSettings(report=False))
    told = explain(out.root, record.run_id)
    assert told.standing == "finished"
    counts = ", ".join(f"{n} {status}" for status, n in record.counts.items())
    assert line(told, "scans") == f"{TOTAL} planned of {TOTAL} in {archive.root}: {counts}"
    assert line(told, "ended").endswith("exit code 0: finished")
    assert line(told, "shards") == "1 of 1 written"
    assert line(told, "lease") == ""
    assert line(told, "next") == "nothing"
    # ids tell the second a run was planned in, and both may be of the same
    assert explain(out.root).run_id == max(record.run_id, nothing_new.run_id), "the newest by default"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"drift_level": "alarm", "counts": {"failed": 3}}, "look at the films before"),
        ({"quarantined": [{"prefix": "s3://h/a/", "reason": "access_denied", "told": "no", "scans": 3}]}, "let the"),
        ({"counts": {"scored": 2, "failed": 3}}, "nothing, the next night tries what failed again"),
    ],
)
def test_what_to_do_after_a_finished_run(out: Store, values: dict[str, object], wanted: str) -> None:
    record = {"run_id": "r1", "model_id": "m1", "planned": 5, "shards": 1, "finished": "2026-11-28T02:40:17+00:00"}
    out.put("runs/r1/run.json", json.dumps({**record, **values}).encode())
    told = explain(out.root)
    assert line(told, "next").startswith(wanted)
    assert line(told, "ended") == "2026-11-28 02:40 UTC", "of a version that wrote no end"
    assert bool(line(told, "left out")) == ("quarantined" in values)


def test_a_run_that_died_while_it_planned(out: Store) -> None:
    out.put("runs/r1/plan/00000.parquet", b"half a plan")
    told = explain(out.root)
    assert told.standing == "never planned"
    assert [text.split()[0] for text in told.lines()] == ["run", "lease", "next"]
    assert line(told, "next").startswith("run the same command again: its driver died while it planned")


def test_what_is_not_there_is_told_in_a_line(out: Store, archive: Store, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        explain(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no run was recorded here"):
        explain(str(tmp_path / "empty"))
    plan = half_done(out, archive, bundle)
    with pytest.raises(InputError, match=f"there is no run '{plan.run_id[:-1]}' here; did you mean '{plan.run_id}'"):
        explain(out.root, plan.run_id[:-1])
    with pytest.raises(InputError, match=f"there is no run 'x' here; the newest is {plan.run_id}"):
        explain(out.root, "x")
    out.put(f"runs/{plan.run_id}/run.json", b"{")
    with pytest.raises(InputError, match=r"run\.json: is damaged; restore it from a copy"):
        explain(out.root)


def test_in_a_bucket(s3: S3Server, archive: Store, bundle: Path) -> None:
    out = open_store(f"{s3.bucket()}/scores")
    plan = half_done(out, archive, bundle)
    write_end(out, end_of(plan, "stopped"))
    create_table(out, conditional=False)
    told = explain(out.root)
    assert (told.standing, told.written, [attempt.shard for attempt in told.attempts]) == ("unfinished", 1, [1])
