"""Run a command and watch its whole process tree: wall time, CPU time and memory, the same way for every rival.

CPU and memory are sampled from /proc: Ray's raylet ignores SIGCHLD, so the CPU time of its workers never reaches a
parent's rusage.
"""

import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What one command did and took."""

    output: str
    """Its stdout."""
    began: float
    """Seconds since the epoch."""
    wall: float
    """Seconds, start-up and shut-down included."""
    cpu: float
    """CPU seconds of all its processes, as of the last sample that saw each."""
    memory: tuple[tuple[float, float], ...]
    """(seconds since the start, GiB resident of all its processes); a page that processes share counts once."""


class CommandError(Exception):
    """The command failed; holds the end of its output."""


def watch(command: Sequence[str], env: Mapping[str, str], *, every: float = 0.5, memory: bool = False) -> Watched:
    """Run a command to its end. Raises `CommandError` when it exits with anything but 0."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        began, started = time.time(), time.perf_counter()
        process = subprocess.Popen(command, env=dict(env), stdout=said, stderr=complained, text=True)
        tree = _Tree(process.pid, memory)
        ended = threading.Event()
        sampler = threading.Thread(target=tree.sample_until, args=(ended, every, started))
        sampler.start()
        code = process.wait()
        wall = time.perf_counter() - started
        ended.set()
        sampler.join()
        for stream in (said, complained):
            stream.seek(0)
        if code:
            raise CommandError(f"{' '.join(command)} exited with {code}:\n{complained.read()[-3000:]}")
        return Watched(output=said.read(), began=began, wall=wall, cpu=sum(tree.cpu.values()), memory=tuple(tree.curve))


class _Tree:
    """The processes below one, found again at every sample."""

    def __init__(self, root: int, memory: bool) -> None:
        self.root, self.memory = root, memory
        self.cpu: dict[tuple[int, float], float] = {}
        self.curve: list[tuple[float, float]] = []

    def sample_until(self, ended: threading.Event, every: float, started: float) -> None:
        while not ended.wait(every):
            resident = sum(self._look(process) for process in self._processes())
            if self.memory:
                self.curve.append((time.perf_counter() - started, resident / 2**30))

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.root)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _look(self, process: psutil.Process) -> int:
        """Note the CPU time so far; returns the bytes resident, shared pages divided among their sharers."""
        try:
            times: Any = process.cpu_times()
            self.cpu[process.pid, process.create_time()] = times.user + times.system
            return int(process.memory_full_info().pss) if self.memory else 0
        except psutil.Error:  # ended between the look at the tree and this one
            return 0
