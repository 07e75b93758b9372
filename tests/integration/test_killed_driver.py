"""`kill -9` of the driver half-way through a night; the same command then finishes it, each scan exactly once."""

from pathlib import Path

from pipelines.table.query import ask
from tests.nights import make_night

FILMS = 240


def test_a_killed_run_is_finished_by_the_next(rayscan_command: str, tmp_path: Path) -> None:
    night = make_night(rayscan_command, tmp_path, films=FILMS)
    assert 3 <= night.kill_driver(after=3) < FILMS // 4
    (unfinished,) = ask(night.scores.root, "SELECT run_id, state FROM runs").to_pylist()
    assert unfinished["state"] == "unfinished"

    again = night.run()
    assert again.returncode == 0, again.stderr
    assert "unfinished" in again.stderr
    assert night.rows() == {"rows": FILMS, "scans": FILMS, "runs": 1}
    assert ask(night.scores.root, "SELECT DISTINCT run_id FROM scores").to_pylist() == [
        {"run_id": unfinished["run_id"]}
    ]
