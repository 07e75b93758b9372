"""Memory over a long night: 100,000 scans by the real command, every process of it counted, once a second.

What grows by a few bytes a scan shows here and nowhere else: the last quarter must not hold more than the second did.
"""

import json
import os
import statistics
from pathlib import Path

import pytest

from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.benchmarks.bundles import untrained
from tests.benchmarks.films import link
from tests.benchmarks.measured import machine, record
from tests.benchmarks.processes import watch
from tests.servers import clean_environment

SCANS = int(os.environ.get("RAYSCAN_BENCH_MEMORY_SCANS", "100000"))
FILM_SIZE = 128
"""Small films, so that the night is long in scans and not in hours."""
PEAK_GIB = 4.0
GROWTH = 0.05


@pytest.mark.bench
def test_memory_stays_where_it_is(tmp_path: Path, rayscan_command: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(open_store(str(tmp_path / "distinct")), patients=60, seed=0, size=FILM_SIZE)
    link(tuple(sorted((tmp_path / "distinct").rglob("*.jpeg"))), tmp_path / "films", SCANS)
    untrained("cnn", tmp_path / "bundle", size=64)
    command = [rayscan_command, "score", str(tmp_path / "films"), "--model", str(tmp_path / "bundle")]
    run = watch([*command, "--out", str(tmp_path / "scores"), "--json"], clean_environment(), every=1, memory=True)
    (answer,) = json.loads(run.output)
    assert answer["planned"] == SCANS
    written = sorted(part.stat().st_mtime - run.began for part in (tmp_path / "scores").glob("scores/**/*.parquet"))
    scoring = [gib for at, gib in run.memory if written[0] <= at <= written[-1]]
    assert len(scoring) >= 40, f"{SCANS} scans are scored too soon to see memory grow"
    quarters = [statistics.fmean(scoring[len(scoring) * n // 4 : len(scoring) * (n + 1) // 4]) for n in range(4)]
    peak = max(gib for _, gib in run.memory)
    text = (
        f"{SCANS} scans in {run.wall:.0f} s, {answer['engine']}. Resident memory of all processes, GiB: quarters of\n"
    )
    text += f"the scoring {', '.join(f'{mean:.3f}' for mean in quarters)}; peak of the whole command {peak:.2f}.\n\n"
    text += curve(run.memory)
    with capsys.disabled():
        print(f"\n{machine()}\n{text}")
    record("memory", text)
    assert peak <= PEAK_GIB
    assert quarters[3] <= (1 + GROWTH) * quarters[1]


def curve(memory: tuple[tuple[float, float], ...], points: int = 24) -> str:
    """Some points of it as lines `seconds GiB ###`."""
    step = max(1, len(memory) // points)
    return "\n".join(f"    {at:6.0f} s  {gib:5.2f}  {'#' * round(gib * 20)}" for at, gib in memory[::step])
