"""The log file of this process: what Ray's C++ code writes, and the traceback of a fault.

Ray's C++ code writes to file descriptor 2 past Python, in the middle of whatever is drawn on the terminal. While Ray
runs, that descriptor is this file, and `sys.stderr` is the terminal under another number.
"""

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from pipelines.bundles import cache_folder

KEPT: Final = 50
"""How many log files are kept, the newest."""
_STDERR: Final = 2


@cache
def path() -> Path:
    """This process's log file, which may not exist yet; only its owner can read it.

    It lies in `logs` of the cache, or in a temporary folder where the cache cannot be written.
    """
    try:
        folder = cache_folder("logs")
        for old in sorted(folder.glob("*.log"))[:-KEPT]:
            old.unlink(missing_ok=True)
        name = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
        name.touch(mode=0o600)
    except OSError:
        descriptor, temporary = tempfile.mkstemp(prefix="rayscan-", suffix=".log")
        os.close(descriptor)
        return Path(temporary)
    return name


def write_traceback(error: BaseException) -> Path:
    """Append the traceback of a fault; returns where it is. Raises `OSError` where nothing can be written at all."""
    with path().open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now(UTC).isoformat()}\n")
        traceback.print_exception(error, file=log)
    return path()


@contextmanager
def native_stderr() -> Iterator[Path | None]:
    """Send what is written to file descriptor 2 past Python to the log file, as long as the block runs.

    Yields that file; None where `sys.stderr` is not on descriptor 2 (somebody has replaced it already): then nothing
    changes. A file that nothing was written to is removed.
    """
    if not _on_descriptor_2():
        yield None
        return
    before = sys.stderr
    before.flush()
    kept = os.dup(_STDERR)
    with path().open("ab") as log:
        os.dup2(log.fileno(), _STDERR)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
    try:
        yield path()
    finally:
        sys.stderr.flush()
        os.dup2(kept, _STDERR)
        sys.stderr.close()
        sys.stderr = before
        if path().exists() and not path().stat().st_size:
            path().unlink()


def _on_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == _STDERR
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return False
