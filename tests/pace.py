"""CPU-seconds of commands, and how slow this machine is now: a limit in seconds is one of a quiet machine."""

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.servers import clean_environment

REFERENCE = (sys.executable, "-c", "import typer.main, rich.console, asyncio")
"""Imports of others' code only, such as every verb needs."""
QUIET = 0.22
"""CPU-seconds of the reference on two quiet cores (AMD EPYC, Python 3.11)."""


def run(args: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """What the command said, and its CPU-seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(args, capture_output=True, text=True, env=env or clean_environment(), check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pace() -> float:
    """How many times as long as on a quiet machine the reference takes now; at least 1."""
    return max(1.0, run(REFERENCE)[1] / QUIET)
