"""`kill -9` of the driver half-way through a night; the same command then finishes it, each scan exactly once."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from models.bundle import save_bundle
from models.calibration import Calibration
from models.zoo import build
from pipelines.phantom import encode
from pipelines.results.query import ask
from pipelines.storage import Store, open_store
from tests.models.synthetic import small_spec
from tests.servers import clean_environment

FILMS = 240
SECONDS = 120


def parts(scores: Store) -> int:
    return len(list(scores.path.glob("scores/*/*/*.parquet")))


@pytest.fixture
def command(rayscan_command: str, tmp_path: Path) -> list[str]:
    """A night over FILMS small films, four of them a part."""
    spec = small_spec()
    save_bundle(
        tmp_path / "bundle",
        spec=spec,
        state_dict=build(spec).state_dict(),
        calibration=Calibration(temperature=1.0, operating_points={"balanced": 0.5}),
        evaluation={},
        lineage={},
    )
    archive, rng = open_store(str(tmp_path / "archive")), np.random.default_rng(0)
    for number in range(FILMS):
        archive.put(f"{number}.jpeg", encode(rng.integers(0, 255, (600, 600), dtype=np.uint8), "jpeg"))
    paths = [str(tmp_path / name) for name in ("archive", "bundle", "scores")]
    return [rayscan_command, "score", paths[0], "--model", paths[1], "--out", paths[2], "--shard-size", "4"]


def run_and_kill(command: list[str], scores: Store, *, after: int) -> int:
    """Start a run and `kill -9` its driver once so many parts are there; returns how many there are then."""
    driver = subprocess.Popen(command, env=clean_environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline, pause = time.monotonic() + SECONDS, threading.Event()
        while parts(scores) < after:
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            pause.wait(0.01)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        # Ray's own processes notice within seconds, and need not be waited for; none is left behind for long.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    return parts(scores)


def check_finished_once(command: list[str], scores: Store, run_id: str) -> None:
    """Run the same command to its end: each scan has one row, all under the run that was killed."""
    again = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "unfinished" in again.stderr
    assert ask(
        scores.root,
        "SELECT count(*) AS n, count(DISTINCT scan_id) AS scans, count(DISTINCT run_id) AS runs, min(run_id) AS run"
        " FROM scores",
    ).to_pylist() == [{"n": FILMS, "scans": FILMS, "runs": 1, "run": run_id}]


def test_a_killed_run_is_finished_by_the_next(command: list[str], tmp_path: Path) -> None:
    scores = open_store(str(tmp_path / "scores"))
    assert 3 <= run_and_kill(command, scores, after=3) < FILMS // 4
    (unfinished,) = ask(scores.root, "SELECT run_id, state FROM runs").to_pylist()
    assert unfinished["state"] == "unfinished"
    check_finished_once(command, scores, unfinished["run_id"])
