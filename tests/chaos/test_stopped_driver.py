"""A night that an operator stops again and again: none of these stops is taken for a film that kills its worker."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.scoring.explain import explain
from tests.nights import Night, make_night, wait_for

pytestmark = pytest.mark.chaos

FILMS = 160
STOPS = (signal.SIGINT, signal.SIGTERM)


def attempts(night: Night) -> list[str]:
    if not night.scores.path.is_dir():
        return []
    return [info.key for chunk in night.scores.list("runs") for info in chunk if "/attempts/" in info.key]


def stopped_half_way(night: Night, how: signal.Signals) -> tuple[int, str]:
    with night.running() as driver:

        def ended() -> bool:
            assert driver.poll() is None, driver.communicate()[1]
            return False

        wait_for(lambda: bool(attempts(night)), unless=ended)
        driver.send_signal(how)
        _, stderr = driver.communicate(timeout=120)
        return driver.returncode, stderr


def test_a_stop_by_an_operator_is_no_death(rayscan_command: str, tmp_path: Path) -> None:
    night = make_night(rayscan_command, tmp_path, films=FILMS, side=1200)
    night = replace(night, options=("--shard-size", str(FILMS // 2)))
    for how in STOPS:
        returncode, stderr = stopped_half_way(night, how)
        assert returncode == 128 + how, stderr
        assert "run the same command again" in stderr
        assert night.parts() == 0, "the shards were under way"
        assert attempts(night) == [], "a stop is no death"
        told = explain(night.scores.root)
        assert told.end is not None
        assert (told.standing, told.end.state, told.end.exit_code) == ("unfinished", "stopped", 128 + how)
        assert told.end.under_way, "shards had been begun"
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.statuses() == {("scored", None): FILMS}
    assert night.rows() == {"rows": FILMS, "scans": FILMS, "runs": 1}
