"""The table while its writers are killed: readers of two engines see each committed row once, at every moment."""

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipelines.storage import Store, open_store
from pipelines.table.query import ask
from tests.chaos.committer import MODEL, ROWS, RUN
from tests.pipelines.table.parts import commit_part
from tests.servers import clean_environment

pytestmark = pytest.mark.chaos

SHARDS, KILLS, COMPACTIONS = 400, 50, 20


@dataclass
class Readers:
    """What two engines have seen of the table, again and again: through rayscan (DuckDB), and through deltalake."""

    store: Store
    looks: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Count once with each engine; rows never become fewer, and none is there twice."""
        question = "SELECT count(*) AS rows, count(DISTINCT scan_id) AS scans FROM scores"
        (row,) = ask(self.store.root, question).to_pylist()
        self._judge("rayscan", row["rows"], row["scans"])
        scans = DeltaTable(str(self.store.path / "scores")).to_pyarrow_table(columns=["scan_id"])["scan_id"]
        self._judge("deltalake", len(scans), len(set(scans.to_pylist())))

    def _judge(self, engine: str, rows: int, scans: int) -> None:
        self.looks[engine] += 1
        if rows != scans or rows < self.looks[f"{engine} rows"]:
            self.faults.append(f"{engine}: {rows} rows of {scans} scans after {self.looks[f'{engine} rows']} rows")
        self.looks[f"{engine} rows"] = rows


@contextmanager
def read_all_the_time(store: Store) -> Iterator[Readers]:
    """Two engines that read until the block ends."""
    readers, ended = Readers(store), threading.Event()

    def read() -> None:
        while not ended.is_set():
            readers.look()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield readers
    finally:
        ended.set()
        thread.join()


def killed_after(command: list[str], lines: int) -> int:
    """Start a command and `kill -9` it once it has printed so many lines; returns how many it had printed."""
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = sum(1 for _, _ in zip(range(lines), process.stdout, strict=False))
        process.kill()
    return seen


def test_a_driver_killed_between_part_and_commit(tmp_path: Path) -> None:
    store, moments = open_store(str(tmp_path / "scores")), random.Random(0)
    store.put(f"runs/{RUN}/plan.json", b'{"run_id": "x"}')
    commit_part(store, "20260302T020000Z-aaaaaa", 0, ["s3://films/before.dcm"], model_id=MODEL)
    command = [sys.executable, "-m", "tests.chaos.committer", store.root, str(SHARDS)]
    with read_all_the_time(store) as readers:
        for _ in range(KILLS):
            killed_after(command, moments.randint(0, 2 * SHARDS // KILLS))
        subprocess.run(command, env=clean_environment(), check=True, capture_output=True, timeout=300)
        readers.look()
    assert readers.faults == []
    question = "SELECT count(*) AS rows, count(DISTINCT scan_id) AS scans FROM scores"
    assert ask(store.root, question).to_pylist() == [{"rows": SHARDS * ROWS + 1, "scans": SHARDS * ROWS + 1}]
    print(f"driver: {KILLS} kills, 0 rows lost, 0 doubled; {dict(readers.looks)}")


def test_a_compaction_killed(rayscan_command: str, tmp_path: Path) -> None:
    store, moments = open_store(str(tmp_path / "scores")), random.Random(1)
    for shard in range(60):
        commit_part(store, RUN, shard, [f"s3://films/{shard}-{row}.dcm" for row in range(ROWS)], model_id=MODEL)
    store.put(f"runs/{RUN}/plan.json", b"{}")
    store.put(f"runs/{RUN}/run.json", f'{{"run_id": "{RUN}", "counts": {{}}}}'.encode())
    command = [rayscan_command, "compact", store.root, "--wait", "2m"]
    pause = threading.Event()
    with read_all_the_time(store) as readers:
        for _ in range(COMPACTIONS):
            with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
                pause.wait(moments.uniform(0, 3))
                process.kill()
        subprocess.run(command, env=clean_environment(), check=True, capture_output=True, timeout=300)
        readers.look()
    assert readers.faults == []
    assert ask(store.root, "SELECT count(DISTINCT scan_id) AS n FROM scores").to_pylist() == [{"n": 60 * ROWS}]
    print(f"compaction: {COMPACTIONS} kills, 0 rows lost, 0 doubled; {dict(readers.looks)}")
