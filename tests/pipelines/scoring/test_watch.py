"""The watch over a worker, as a process of its own: it ends the process it is set in."""

import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys
from pipelines.scoring.watch import watched

def films(hang_at):
    for number in range(4):
        if number == hang_at:
            list(range(10**9)) if sys.argv[2] == "busy" else signal.pause()
        yield number

for film in watched(films(int(sys.argv[1])), 0.3):
    print(film, flush=True)
"""


def run(hang_at: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(hang_at), how]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("hang_at", [0, 2])
@pytest.mark.parametrize("how", ["asleep", "busy"])
def test_a_film_that_never_comes_ends_the_process(hang_at: int, how: str) -> None:
    ended = run(hang_at, how)
    assert ended.returncode == 1
    assert ended.stdout.split() == [str(n) for n in range(hang_at)], "the films before it were handed over"
    assert "Timeout" in ended.stderr
    assert "in films" in ended.stderr, "the log says where it hung"


def test_films_that_come_are_handed_over_and_the_clock_is_stopped() -> None:
    ended = run(-1, "asleep")
    assert (ended.returncode, ended.stdout.split()) == (0, ["0", "1", "2", "3"])
