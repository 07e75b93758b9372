"""A real terminal for the tests: a command runs under a pseudo-terminal, and what a person would see is read back."""

import codecs
import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte
import pyte.screens

POLL_SECONDS = 0.1
MOST_LINES = 10_000
_IN_A_SESSION = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the terminal on stdin the one whose Ctrl-C reaches the command, as a shell does."""


@dataclass(frozen=True)
class Shown:
    """What a command left on its terminal."""

    exit_code: int
    lines: list[str]
    """Everything from the first line on as it stood at the end, scrolled off or not, without what was drawn over."""
    sent: str
    """Every character the command sent, control codes included."""
    stdout: str
    """Where stdout was a pipe, what went there; else empty."""

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    @property
    def last_line(self) -> str:
        """The last line that is not blank."""
        return next(line for line in reversed(self.lines) if line.strip())


def on_terminal(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    size: tuple[int, int] = (80, 24),
    piped_stdout: bool = False,
    interrupt_when: Callable[[str], bool] | None = None,
    deadline: float = 900,
) -> Shown:
    """Run a command as the foreground job of a terminal of `size` (columns, lines), and wait for its end.

    Once `interrupt_when` is true of the characters sent so far, Ctrl-C is typed, once. A command that runs longer than
    `deadline` seconds is killed, and the test fails with what it had shown.
    """
    columns, rows = size
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_SESSION, *command],
        stdin=theirs,
        stdout=subprocess.PIPE if piped_stdout else theirs,
        stderr=theirs,
        env=dict(env),
        cwd=cwd,
    )
    os.close(theirs)
    piped: list[str] = []
    reader = threading.Thread(target=lambda: piped.append(process.stdout.read().decode() if process.stdout else ""))
    reader.start()
    try:
        sent = _read(ours, process, interrupt_when, time.monotonic() + deadline)
        if process.poll() is None:
            raise AssertionError(f"{command} still ran after {deadline} s and had shown:\n" + sent[-4000:])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
        reader.join()
    return Shown(
        exit_code=process.returncode, lines=_rendered(sent, columns or 80, rows or 24), sent=sent, stdout=piped[0]
    )


def _read(
    terminal: int, process: subprocess.Popen[bytes], interrupt_when: Callable[[str], bool] | None, until: float
) -> str:
    """What the command sends until it has ended; its helpers may hold the terminal open for longer."""
    decoder, sent = codecs.getincrementaldecoder("utf-8")("replace"), ""
    while time.monotonic() < until:
        ended = process.poll() is not None
        ready, _, _ = select.select([terminal], [], [], POLL_SECONDS)
        if ready:
            with contextlib.suppress(OSError):  # Linux ends a terminal nobody holds any more with an error
                if more := os.read(terminal, 1 << 16):
                    sent += decoder.decode(more)
                    if interrupt_when is not None and interrupt_when(sent):
                        os.write(terminal, b"\x03")
                        interrupt_when = None
                    continue
        if ended:
            break
    return sent


def _rendered(sent: str, columns: int, rows: int) -> list[str]:
    screen = pyte.HistoryScreen(columns, rows, history=MOST_LINES, ratio=1.0)
    pyte.Stream(screen).feed(sent)
    above = ["".join(line[column].data for column in range(columns)) for line in screen.history.top]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines
