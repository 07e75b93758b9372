"""Two runs of one model at the same scores: one works, and nothing is scored twice."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.nights import make_night, wait_for

pytestmark = pytest.mark.chaos

FILMS = 240


def test_of_two_started_together_one_is_sent_away(rayscan_command: str, tmp_path: Path) -> None:
    night = make_night(rayscan_command, tmp_path, films=FILMS)
    with night.running() as first, night.running() as second:
        wait_for(lambda: first.poll() is not None or second.poll() is not None)
        loser, winner = (first, second) if first.poll() is not None else (second, first)
        # One that starts late may find the other done, and then has nothing to do: that is right, too.
        _, stderr = loser.communicate()
        if loser.returncode == 3:
            assert "another run is at work here" in stderr
        else:
            assert loser.returncode == 0, stderr
        _, stderr = winner.communicate()
        assert winner.returncode == 0, stderr
    assert night.rows()["rows"] == night.rows()["scans"] == FILMS


def test_a_driver_back_from_the_dead_can_only_lose(rayscan_command: str, tmp_path: Path) -> None:
    """A driver is paused, another takes its lease and finishes its run; then the first goes on with the same shards."""
    night = make_night(rayscan_command, tmp_path, films=FILMS)
    with night.running() as sleeper:
        night.wait_for_parts(sleeper, 2)
        sleeper.send_signal(signal.SIGSTOP)
        # As if it ran on another machine, and had been silent for the lease's whole life.
        for info in [info for chunk in night.scores.list("leases") for info in chunk]:
            night.scores.put(info.key, b'{"owner": "", "process": null}')
        done = subprocess.run(night.command, env=dict(night.environment), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "resuming it under its own plan" in done.stderr
        sleeper.send_signal(signal.SIGCONT)
        _, stderr = sleeper.communicate(timeout=120)
        # It either sees at its next turn that its lease is gone, or is through before that with parts that were there;
        # or Ray, which it was silent to for too long, has ended it.
        ended_by_ray = "core worker has already been shutdown" in stderr
        assert sleeper.returncode in {0, 3} or ended_by_ray, stderr
    assert night.rows() == {"rows": FILMS, "scans": FILMS, "runs": 1}
