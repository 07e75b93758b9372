"""Where a process runs and how much memory it finds there: what a post-mortem asks first.

Written with every attempt at a shard and with the end of every run, so it must cost nothing: two small files of `/proc`
and `/sys` on Linux; elsewhere the memory is unknown.
"""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
"""In a container the limit is here, and the memory of the whole node says little."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """A process at one moment."""

    node: str
    """Host name."""
    pid: int
    at: str
    """ISO 8601, UTC, by the node's clock."""
    free_bytes: int | None
    """Memory that could still be had, of the node or of the container, whichever is less; None: unknown."""


def here() -> Whereabouts:
    """This process, now."""
    return Whereabouts(
        node=socket.gethostname(), pid=os.getpid(), at=datetime.now(UTC).isoformat(), free_bytes=_free_bytes()
    )


def _free_bytes() -> int | None:
    known = [free for free in (_of_node(), _of_container()) if free is not None]
    return min(known, default=None)


def _of_node() -> int | None:
    try:
        lines = _MEMORY.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):  # no Linux, or one that tells it otherwise
        return None


def _of_container() -> int | None:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no cgroup of version 2, or no limit ("max")
        return None
