"""Progress on stderr: lines where it is kept, a bar where a person looks at it. Never on stdout."""

import logging
import math
import re
import subprocess
import sys

import pytest

from pipelines import progress as module
from pipelines.progress import progress
from tests.servers import clean_environment
from tests.terminal import on_terminal

WORK = """
from pipelines.progress import progress
with progress("score run-7", 40) as advance:
    for _ in range(4):
        advance(10)
"""


LINE = "shard ends"
LOGGED_WORK = f"""
import logging
from cluster.output import set_up_logging
from pipelines.progress import progress
set_up_logging()
with progress("score run-7", 40) as advance:
    for _ in range(4):
        advance(10)
        logging.getLogger("rayscan").info({LINE!r})
"""


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0)
    with caplog.at_level(logging.INFO, "rayscan"), progress("evaluate on test", 70, "films") as advance:
        for done in (32, 32, 6):
            advance(done)
    assert [re.sub(r"\d+ a second", "n a second", line) for line in caplog.messages] == [
        "evaluate on test: 32 of 70 films, n a second",
        "evaluate on test: 64 of 70 films, n a second",
        "evaluate on test: 70 of 70 films, n a second",
    ]


def test_quick_work_needs_no_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rayscan"), progress("inspect", 1000) as advance:
        for _ in range(1000):
            advance(1)
    assert caplog.messages == []


@pytest.mark.parametrize("unit", ["scans", "films"])
def test_a_failure_inside_goes_up(unit: str) -> None:
    with pytest.raises(ZeroDivisionError), progress("score", 10, unit):
        raise ZeroDivisionError


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_a_terminal_gets_a_bar_with_the_log_above_and_stdout_nothing(columns: int) -> None:
    shown = on_terminal(
        [sys.executable, "-c", LOGGED_WORK],
        env={**clean_environment(), "TERM": "xterm"},
        size=(columns, 24),
        piped_stdout=True,
    )
    assert shown.stdout == ""
    *log, bar = shown.lines
    assert " ".join(" ".join(log).split()).endswith(LINE)
    assert len(log) == 4 * math.ceil((len(LINE) + len("12:00:00 ")) / columns)
    assert re.fullmatch(r"score run-7 ━+ 40/40( scans 0:00:0\d 00:00)?", bar)
    assert len(bar) == columns


def test_a_terminal_whose_size_nobody_knows_gets_a_bar_too() -> None:
    shown = on_terminal([sys.executable, "-c", WORK], env={**clean_environment(), "TERM": "xterm"}, size=(0, 0))
    assert "40/40" in shown.sent


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_be_drawn_over_gets_no_control_codes(term: str) -> None:
    shown = on_terminal([sys.executable, "-c", LOGGED_WORK], env={**clean_environment(), "TERM": term})
    assert "\x1b" not in shown.sent
    assert len(shown.lines) == 4


def test_stderr_that_is_no_terminal_gets_no_control_codes() -> None:
    work = subprocess.run([sys.executable, "-c", WORK], capture_output=True, check=True)
    assert (work.stdout, work.stderr) == (b"", b"")
