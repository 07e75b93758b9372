"""A question to `latest` over ten million rows: the first in 12 CPU-seconds, the next in 3.5.

7.5 % of the rows are further versions of a file. CPU time counts, that of the imports too, not the time that passes,
because machines are shared.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.tables import write_scores
from tests.pace import pace

ROWS = 10_000_000
FIRST, NEXT = 12, 3.5
"""CPU-seconds of a quiet machine."""

ASK = """
import json, resource, sys, time
from pipelines.table.query import ask, read_scores
uri, sql = sys.argv[1:]
started = time.perf_counter()
first = ask(uri, sql).to_pylist()
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "answer": first, "gib": used.ru_maxrss / 2**20}))
"""
LATEST = "SELECT status, count(*) AS n, avg(probability) AS p FROM latest GROUP BY status ORDER BY status"
WINDOW = """
    SELECT status, count(*) AS n, avg(probability) AS p FROM (
        SELECT * FROM scores QUALIFY row_number() OVER (
            PARTITION BY model_id, uri ORDER BY status = 'failed', plan_version DESC, run_id DESC) = 1
    ) GROUP BY status ORDER BY status
"""


@pytest.mark.bench
def test_latest_over_ten_million_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    write_scores(tmp_path / "scores", ROWS)

    def asked(what: str, sql: str) -> dict[str, object]:
        answer = subprocess.run(
            [sys.executable, "-c", ASK, str(tmp_path / "scores"), sql], check=True, capture_output=True, text=True
        )
        result: dict[str, object] = json.loads(answer.stdout)
        with capsys.disabled():
            print(
                f"\n{what}: {result['cpu']:.2f} CPU-s, {result['seconds']:.2f} s, peak {result['gib']:.2f} GiB", end=""
            )
        return result

    cold = asked("first question", LATEST)
    warm = asked("second question", LATEST)
    window = asked("plain window", WINDOW)
    shutil.rmtree(tmp_path / "scores")
    assert [row["n"] for row in warm["answer"]] == [row["n"] for row in window["answer"]]  # type: ignore[attr-defined]
    assert cold["answer"][0] == warm["answer"][0]  # type: ignore[index]
    slow = pace()
    assert cold["cpu"] <= FIRST * slow  # type: ignore[operator]
    assert warm["cpu"] <= NEXT * slow  # type: ignore[operator]
