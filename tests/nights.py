"""A night to break: an archive, a bundle and the command that scores it, run as a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from pipelines.phantom import encode
from pipelines.storage import Store, open_store
from pipelines.table.query import ask
from tests.pipelines.bundles import save_untrained
from tests.servers import clean_environment

SECONDS = 180
PART_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}-\d+\.parquet")


@dataclass(frozen=True, kw_only=True)
class Night:
    """Where everything lies, and what a run of it is given."""

    rayscan: str
    archive: Store
    bundle: str
    scores: Store
    films: int
    environment: Mapping[str, str] = field(default_factory=clean_environment)
    options: tuple[str, ...] = ("--shard-size", "4")

    @property
    def command(self) -> list[str]:
        """As a person types it."""
        return [
            *(self.rayscan, "score", self.archive.root),
            *("--model", self.bundle, "--out", self.scores.root),
            *self.options,
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """A run; what is left of it at the end is killed."""
        driver = subprocess.Popen(
            self.command,
            env=dict(self.environment),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield driver
        finally:
            # Ray's own processes end within seconds of their driver; the group makes sure of it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            if driver.stderr:
                driver.stderr.close()

    def run(self) -> subprocess.CompletedProcess[str]:
        """A run to its end."""
        return subprocess.run(
            self.command, env=dict(self.environment), capture_output=True, text=True, check=False, timeout=SECONDS
        )

    def parts(self) -> int:
        """The parts that actors have written, committed or not."""
        if self.scores.is_local and not self.scores.path.is_dir():
            return 0
        names = [info.key.rpartition("/")[2] for chunk in self.scores.list("scores") for info in chunk]
        return sum(PART_NAME.fullmatch(name) is not None for name in names)

    def wait_for_parts(self, driver: subprocess.Popen[str], count: int) -> None:
        """Wait until a run has written this many parts; fails if it ends before."""

        def ended() -> bool:
            assert driver.poll() is None, driver.communicate()[1]
            return False

        wait_for(lambda: self.parts() >= count, unless=ended)

    def kill_driver(self, *, after: int) -> int:
        """Start a run and `kill -9` its driver once this many parts are there; returns how many there are then."""
        with self.running() as driver:
            self.wait_for_parts(driver, after)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        return self.parts()

    def rows(self) -> dict[str, int]:
        """Counts of the table: rows, distinct scans, distinct runs."""
        (row,) = ask(
            self.scores.root,
            "SELECT count(*) AS rows, count(DISTINCT scan_id) AS scans, count(DISTINCT run_id) AS runs FROM scores",
        ).to_pylist()
        return dict(row)

    def statuses(self) -> dict[tuple[str, str | None], int]:
        """Rows by status and reason."""
        rows = ask(self.scores.root, "SELECT status, reason, count(*) AS n FROM scores GROUP BY ALL").to_pylist()
        return {(row["status"], row["reason"]): row["n"] for row in rows}


def make_night(rayscan: str, folder: Path, *, films: int, root: str | None = None, side: int = 600) -> Night:
    """A night over small films; archive and scores below `root` (a URI), by default in the folder."""
    save_untrained(folder / "bundle")
    place = root or str(folder)
    archive, rng = open_store(f"{place}/archive"), np.random.default_rng(0)
    for number in range(films):
        # Blots as large as an eighth of the film: finer noise is one grey once it is shrunk, and that is a blank film.
        blots = np.kron(rng.integers(0, 255, (8, 8)), np.ones((side // 8, side // 8)))
        archive.put(f"{number}.jpeg", encode(blots.astype(np.uint8), "jpeg"))
    return Night(
        rayscan=rayscan,
        archive=archive,
        bundle=str(folder / "bundle"),
        scores=open_store(f"{place}/scores"),
        films=films,
    )


def workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The scoring actors of a run: processes that Ray names after what they do."""
    actors = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ScoreShard" in " ".join(process.cmdline()):
                actors.append(process)
    return actors


def wait_for(
    condition: Callable[[], bool], *, unless: Callable[[], bool] = lambda: False, seconds: float = SECONDS
) -> None:
    """Poll until the condition holds; fails on a timeout, or when it can no longer hold."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert not unless(), "what was waited for can no longer happen"
        assert time.monotonic() < end, f"not so within {seconds} s"
        pause.wait(0.02)
