"""Progress on stderr: lines where it is kept, a bar where a person looks at it. Never on stdout."""

import contextlib
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from pipelines import progress as module
from pipelines.progress import progress

WORK = """
from pipelines.progress import progress
with progress("score run-7", 40) as advance:
    for _ in range(4):
        advance(10)
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


def test_a_terminal_gets_a_bar_and_stdout_nothing() -> None:
    ours, theirs = pty.openpty()
    work = subprocess.run(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        check=True,
    )
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # Linux ends a terminal nobody writes to any more with an error
        while more := os.read(ours, 1 << 12):
            shown += more.decode(errors="replace")
    os.close(ours)
    assert work.stdout == b""
    assert "score run-7" in shown
    assert "40/40" in shown
    assert "scans" in shown


def test_stderr_that_is_no_terminal_gets_no_control_codes() -> None:
    work = subprocess.run([sys.executable, "-c", WORK], capture_output=True, check=True)
    assert (work.stdout, work.stderr) == (b"", b"")
