"""`kill -9` of the driver half-way through a night; the same command then finishes it, each scan exactly once."""

from pathlib import Path

from pipelines.scoring.explain import explain
from pipelines.table.query import ask
from tests.nights import make_night

FILMS = 240


def test_a_killed_run_is_finished_by_the_next(rayscan_command: str, tmp_path: Path) -> None:
    night = make_night(rayscan_command, tmp_path, films=FILMS)
    assert 3 <= night.kill_driver(after=3) < FILMS // 4
    (unfinished,) = ask(night.scores.root, "SELECT run_id, state FROM runs").to_pylist()
    assert unfinished["state"] == "unfinished"

    told = explain(night.scores.root)
    assert (told.run_id, told.standing, told.end) == (unfinished["run_id"], "unfinished", None)
    assert told.written >= 3
    assert all(attempt.where and attempt.where.free_bytes for attempt in told.attempts)
    assert told.lease
    assert told.lease.stale
    assert "without a word" in "\n".join(told.lines())

    again = night.run()
    assert again.returncode == 0, again.stderr
    told = explain(night.scores.root, unfinished["run_id"])
    assert told.end is not None
    assert (told.standing, told.end.state, told.attempts) == ("finished", "finished", [])
    assert "unfinished" in again.stderr
    assert night.rows() == {"rows": FILMS, "scans": FILMS, "runs": 1}
    assert ask(night.scores.root, "SELECT DISTINCT run_id FROM scores").to_pylist() == [
        {"run_id": unfinished["run_id"]}
    ]
