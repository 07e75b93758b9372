"""DuckDB for questions: a connection that reads the table's files and no others, and can harm nothing.

A question may come from anybody who may read the scores, so what SQL can reach is fixed before it runs:

    files        only those of the table; no other file of the machine, no network, no extension, no variable of Python
    memory       half of the machine's, or what `--memory` says; what outgrows it is spilled to disk, up to a bound
    spill        rows of patients: in a folder of the cache that only its owner can open, removed with the connection
    settings     locked
    statements   one SELECT (`pipelines/table/question.py`)

The last point is needed beside the first: the paths that DuckDB is allowed to read it may write as well.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import duckdb

from pipelines.bundles import cache_folder
from pipelines.errors import InputError

MOST_THREADS: Final = 16
SPILL_FACTOR: Final = 4
"""The spill may take this many times the memory, and half of the free disk at most."""
SMALLEST: Final = 64_000_000
"""Bytes of memory; less does not open a table of many parts."""
_LOCK: Final = "lock"
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one question may take of the machine."""

    memory: int = 0
    """Bytes; 0: half of the machine's, or of the container's."""

    def __post_init__(self) -> None:
        if self.memory and self.memory < SMALLEST:
            raise InputError(f"a question needs {SMALLEST // 10**6} MB of memory at least; give --memory more")

    @cached_property
    def memory_bytes(self) -> int:
        """Bytes that DuckDB may hold, and, apart from them, that the answer may."""
        return self.memory or max(SMALLEST, _machine_memory() // 2)

    @cached_property
    def disk_bytes(self) -> int:
        """Bytes that may be spilled."""
        free = shutil.disk_usage(cache_folder("spill")).free
        return min(SPILL_FACTOR * self.memory_bytes, free // 2)

    def exceeded(self) -> InputError:
        """The error for a question that needs more."""
        memory, disk = f"{self.memory_bytes / 1e9:.3g} GB", f"{self.disk_bytes / 1e9:.3g} GB"
        return InputError(
            f"the question needs more than it may take: {memory} of memory and {disk} of temporary disk;"
            " ask for fewer rows or columns, or give it more with --memory"
        )


def guarded_connection(files: Iterable[Path], bounds: Bounds | None = None) -> duckdb.DuckDBPyConnection:
    """A connection to an empty database that can read these files and nothing else.

    Tables of Python are given to it by `register`, at any time. Its spill folder goes when it does.
    """
    bounds = bounds or Bounds()
    folder, lock = _spill_folder()
    connection = duckdb.connect(
        config={
            "memory_limit": f"{bounds.memory_bytes}B",
            "threads": min(MOST_THREADS, os.cpu_count() or 1),
            "temp_directory": str(folder / "spilled"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            "python_enable_replacements": False,
        }
    )
    weakref.finalize(connection, _remove, folder, lock)
    # DuckDB 2.0 shows the bound among its settings if it is given above, and does not keep it.
    connection.execute(f"SET max_temp_directory_size = '{bounds.disk_bytes}B'")
    connection.execute("SET enable_progress_bar = false")  # it goes to stdout, where results go
    connection.execute("SET VARIABLE files = ?", [[str(file) for file in files]])
    connection.execute("SET allowed_paths = getvariable('files')")
    connection.execute("RESET VARIABLE files")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _machine_memory() -> int:
    """Bytes of this machine or container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit.read_text().strip() for limit in _LIMITS if limit.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder for rows that are on their way, which nobody else can open; removed afterwards, or by the next."""
    folder, lock = _spill_folder()
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _spill_folder() -> tuple[Path, int]:
    """A new folder for this user only, and the open file whose lock says that it is in use.

    The system drops the lock with the process, so the folders that killed processes left are found, and removed.
    """
    spill = cache_folder("spill")
    with (spill / _LOCK).open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for left in spill.glob("question-*"):
            _remove_unless_used(left)
        folder = Path(tempfile.mkdtemp(dir=spill, prefix="question-"))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_unless_used(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except FileNotFoundError:  # just removed by the process that used it
        return
    try:
        with suppress(BlockingIOError, FileNotFoundError):  # in use, or just removed by the process that used it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
