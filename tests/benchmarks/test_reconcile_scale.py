"""The account of a run of ten million scans, from its parts in the table: at most 25 CPU-seconds and 1 GiB.

The parts are as `score` leaves them, in shards as large as such a plan has. The account is made in a process of its
own. RAYSCAN_BENCH_ROWS asks for another number of rows.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.scoring.plan import make_plan
from pipelines.storage import open_store
from tests.benchmarks.tables import MODEL, commit_scored, write_catalog
from tests.pace import pace

ROWS = int(os.environ.get("RAYSCAN_BENCH_ROWS", "10000000"))
CPU_SECONDS = 25 * ROWS / 10_000_000
GIBIBYTES = 1

RECONCILE = """
import json, re, resource, sys, time
from pathlib import Path
from pipelines.scoring.plan import unfinished_plans
from pipelines.scoring.reconcile import reconcile
from pipelines.storage import open_store
from pipelines.table.delta import open_table
from pipelines.table.drift import DriftTally
scores, model = sys.argv[1:]
store = open_store(scores)
(plan,) = unfinished_plans(store, model)
before = resource.getrusage(resource.RUSAGE_SELF)
started = time.perf_counter()
account = reconcile(open_table(store), plan, DriftTally(None))
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss has the parent's, too
gib = int(peak[1]) / 2**20
told = {"scored": account.counts["scored"], "planned": plan.planned, "shards": plan.shards}
print(json.dumps({**told, "seconds": seconds, "cpu": cpu, "gib": gib}))
"""


@pytest.mark.bench
def test_the_account_of_ten_million(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_catalog(tmp_path / "catalog", ROWS)
    store = open_store(str(tmp_path / "scores"))
    plan = make_plan(store, source=str(tmp_path / "catalog"), bundle="/b", model_id=MODEL, operating_point="balanced")
    commit_scored(store, plan, range(plan.shards))
    args = [sys.executable, "-c", RECONCILE, store.root, MODEL]
    result = json.loads(subprocess.run(args, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(tmp_path)
    with capsys.disabled():
        print(f"\n{result['scored']:,} rows of {result['shards']:,} shards accounted for:", end=" ")
        print(f"{result['cpu']:.1f} CPU-s, {result['seconds']:.1f} s, peak {result['gib']:.2f} GiB")
    assert result["scored"] == result["planned"] == ROWS // 1000 * 925
    assert result["gib"] <= GIBIBYTES
    assert result["cpu"] <= CPU_SECONDS * pace()
