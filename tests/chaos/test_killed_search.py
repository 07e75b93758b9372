"""Drivers and nodes of a search killed half-way; then the search runs to its end, and the table is counted."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
import torch

from pipelines.bundles import fetch_bundle
from pipelines.errors import InputError
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import open_store
from tests.nights import wait_for
from tests.servers import clean_environment
from tests.tuning.films import SIZE, write_dataset
from tuning.search.trial import TrialJob, plan_of
from tuning.study.store import read_trials
from tuning.study.trial_files import load_weights
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import fit

TRIALS, EPOCHS = 10, 9
SECONDS = 900
"""Seconds to wait for a search to reach a point, or its end; on a busy machine that takes minutes."""

pytestmark = pytest.mark.chaos


@dataclass(frozen=True, kw_only=True)
class Search:
    """A `rayscan tune` to break, on small films; where its study lies."""

    rayscan: str
    dataset: str
    study: Path
    environment: dict[str, str] = field(default_factory=clean_environment)
    options: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        return self.study.with_name("stderr.txt")

    @property
    def command(self) -> list[str]:
        return [
            *(self.rayscan, "tune", self.dataset, "--out", str(self.study), "--trials", str(TRIALS)),
            *("--epochs", str(EPOCHS), "--family", "cnn", "--resolution", str(SIZE)),
            *(("--resume",) if (self.study / "study.json").exists() else ()),
            *self.options,
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """A run, its stderr in `log`; what is left of it at the end is killed."""
        with self.log.open("w") as log:
            driver = subprocess.Popen(
                self.command, env=self.environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=log
            )
        try:
            yield driver
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()

    def wait_for(self, condition: Callable[[], bool], driver: "subprocess.Popen[bytes]") -> None:
        """Wait until the condition holds for the study; fails if the driver ends before."""

        def ended() -> bool:
            assert driver.poll() is None, self.log.read_text()
            return False

        wait_for(condition, unless=ended, seconds=SECONDS)

    def run(self) -> None:
        done = subprocess.run(
            self.command, env=self.environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr

    def ended(self) -> set[str]:
        return (
            {record.trial_id for record in read_trials(open_store(str(self.study)))} if self.study.exists() else set()
        )

    def under_way(self) -> dict[str, int]:
        """Epochs done by each trial that has some and has not ended."""
        epochs = {}
        ended = self.ended()
        for path in self.study.glob("trials/*/checkpoint.safetensors"):
            with contextlib.suppress(FileNotFoundError, InputError):  # it has ended meanwhile
                if path.parent.name not in ended:
                    epochs[path.parent.name] = Checkpoint.from_bytes(path.read_bytes()).epoch
        return epochs

    def is_at(self, ended: int, epochs: int) -> bool:
        """Whether this many trials have ended, and a running one has done this many epochs."""
        return len(self.ended()) >= ended and max(self.under_way().values(), default=0) >= epochs

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """`trials` is the study's table."""
        with duckdb.connect() as connection:
            connection.execute(f"CREATE VIEW trials AS FROM '{self.study}/trials.parquet'")
            rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
            return rows

    def assert_whole(self) -> None:
        """Every planned trial once, none suggested twice, each with an unbroken history, nothing left over."""
        (counts,) = self.ask(
            "SELECT count(*) AS rows, count(DISTINCT trial_id) AS ids, count(DISTINCT number) AS numbers,"
            " count(DISTINCT parameters) AS suggestions, count(*) FILTER (status = 'failed') AS failed FROM trials"
        )
        assert counts == {"rows": TRIALS, "ids": TRIALS, "numbers": TRIALS, "suggestions": TRIALS, "failed": 0}
        for row in self.ask("SELECT epochs, history FROM trials"):
            assert [epoch["epoch"] for epoch in json.loads(row["history"])] == list(range(1, row["epochs"] + 1))
        assert not list(self.study.glob("trials/*/checkpoint.safetensors"))

    def assert_as_unbroken(self, trial_id: str) -> None:
        """The trial, trained again without interruption, has the same figures and weights."""
        store, info = open_store(str(self.study)), read_dataset_info(self.dataset)
        (record,) = [one for one in read_trials(store) if one.trial_id == trial_id]
        job = TrialJob(study=store, preprocessing=info.preprocessing, epochs=EPOCHS, seed=0, threads=1, device="cpu")
        plan = plan_of(record.parameters, job)
        train, val = load_films(self.dataset, "train"), load_films(self.dataset, "val")
        whole = fit(plan.spec, train, val, plan.training, lambda report, state: report.epoch < record.epochs)
        for name in ("train_loss", "val_auc", "val_loss"):
            assert [epoch[name] for epoch in record.history] == [getattr(report, name) for report in whole.history]
        weights = load_weights(store, trial_id)
        assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict.items())


@pytest.fixture
def search(rayscan_command: str, tmp_path: Path) -> Search:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, films=2800)
    return Search(rayscan=rayscan_command, dataset=dataset, study=tmp_path / "study")


def test_drivers(search: Search, tmp_path: Path) -> None:
    moments, kills, interrupted = random.Random(0), 3, {}
    for kill in range(1, kills + 1):
        table = tmp_path / f"before-{kill}.parquet"
        with search.running() as driver:
            least = len(search.ended()) + moments.randint(1, TRIALS // kills - 1)
            done = moments.randint(1, EPOCHS // 2)
            search.wait_for(partial(search.is_at, least, done), driver)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            shutil.copy(search.study / "trials.parquet", table)
        interrupted |= search.under_way()
    search.run()
    search.assert_whole()
    for kill in range(1, kills + 1):
        assert search.ask(f"FROM '{tmp_path}/before-{kill}.parquet' EXCEPT FROM trials") == []
    assert interrupted
    epochs = {row["trial_id"]: row["epochs"] for row in search.ask("SELECT trial_id, epochs FROM trials")}
    for trial_id, done in interrupted.items():
        assert epochs[trial_id] >= done
        search.assert_as_unbroken(trial_id)
    print(f"{kills} kills of the driver: {TRIALS} trials, none twice; {len(interrupted)} taken up, as if unbroken")


def test_ctrl_c(search: Search) -> None:
    """The search ends by itself, with the best so far promoted; what was under way counts with what it reached."""
    with search.running() as driver:
        search.wait_for(partial(search.is_at, 2, 2), driver)
        under_way = search.under_way()
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=SECONDS) == 0, search.log.read_text()
    rows = {row["trial_id"]: row for row in search.ask("SELECT trial_id, epochs, status, auc FROM trials")}
    assert 2 < len(rows) < TRIALS
    for trial_id, epochs in under_way.items():
        assert rows[trial_id]["epochs"] >= epochs
    bundle = fetch_bundle(str(search.study / "best"))
    assert rows[bundle.lineage["trial_id"]]["auc"] == max(row["auc"] for row in rows.values())
    assert not list(search.study.glob("trials/*/checkpoint.safetensors"))
    search.run()
    search.assert_whole()


def test_nodes(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    # Before the cluster starts, so that its head sees a lost node within seconds instead of half a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        # This cluster has no token, and a driver that finds one on its machine would use it.
        environment = {**search.environment, "RAY_AUTH_MODE": "disabled"}
        search = replace(search, environment=environment, options=("--address", cluster.address))
        with search.running() as driver:
            search.wait_for(lambda: len(search.ended()) >= 2 and len(search.under_way()) == 2, driver)
            reached = search.under_way()
            raylet = nodes[0].all_processes["raylet"][0].process.pid
            for process in [*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)]:
                process.send_signal(signal.SIGKILL)
            assert driver.wait(timeout=SECONDS) == 0, search.log.read_text()
    finally:
        cluster.shutdown()
    search.assert_whole()
    (lost,) = [line for line in search.log.read_text().splitlines() if "goes on from its last epoch" in line]
    for trial_id in reached:
        search.assert_as_unbroken(trial_id)
    print(f"1 of 2 nodes killed: {TRIALS} trials, none twice; {lost}")
