"""A question to `latest` over ten million rows, as two nights of `score` leave them: 1.6 CPU-seconds, the first too.

7.5 % of the rows are further versions of a file. Where the night left no account of superseded rows beside the table
(it was scored by an older rayscan, or erased from since) the first question takes 6. CPU time counts, that of the
imports too, not the time that passes, because machines are shared.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.table.marks import MARKS
from tests.benchmarks.tables import score_nights
from tests.pace import pace

ROWS = 10_000_000
FIRST, AGAIN, LOOKED = 1.6, 1.6, 6
"""CPU-seconds of a quiet machine."""

ASK = """
import json, re, resource, sys, time
from pathlib import Path
from pipelines.table.query import ask
uri, sql = sys.argv[1:]
started = time.perf_counter()
answer = ask(uri, sql).to_pylist()
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss has the parent's, too
cost = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "gib": int(peak[1]) / 2**20}
print(json.dumps({"answer": answer, **cost}))
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
    scores = tmp_path / "scores"
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "scoring"))
    score_nights(scores, ROWS, changed=[81])

    def asked(what: str, machine: str, sql: str = LATEST) -> dict[str, Any]:
        monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / machine))
        command = [sys.executable, "-c", ASK, str(scores), sql]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        told: dict[str, Any] = json.loads(answer.stdout)
        with capsys.disabled():
            print(f"\n{what}: {told['cpu']:.2f} CPU-s, {told['seconds']:.2f} s, peak {told['gib']:.2f} GiB", end="")
        return told

    first = asked("first question", "one")
    again = asked("again", "one")
    shutil.rmtree(scores / MARKS)
    looked = asked("first question without what the night left", "another")
    window = asked("plain window", "one", WINDOW)
    shutil.rmtree(scores)
    assert first["answer"] == again["answer"]
    for one in (first, looked):
        assert [row["n"] for row in one["answer"]] == [row["n"] for row in window["answer"]]
    slow = pace()
    for told, most in ((first, FIRST), (again, AGAIN), (looked, LOOKED)):
        assert told["cpu"] <= most * slow
