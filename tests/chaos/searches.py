"""A search to break: a real `rayscan tune`, how far it is, and whether its study is whole in the end."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import torch

from pipelines.errors import InputError
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.storage import open_store
from tests.nights import wait_for
from tests.servers import clean_environment
from tests.tuning.films import SIZE
from tuning.search.trial import TrialJob, plan_of
from tuning.study.store import read_study, read_trials
from tuning.study.trial_files import load_weights
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import fit

SECONDS: Final = 900
"""Seconds to wait for a search to reach a point, or its end; on a busy machine that takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A `rayscan tune` to break, on small films; where its study lies."""

    rayscan: str
    dataset: str
    study: Path
    environment: dict[str, str] = field(default_factory=clean_environment)
    options: tuple[str, ...] = ()
    trials: int
    epochs: int
    family: str

    @property
    def log(self) -> Path:
        return self.study.with_name("stderr.txt")

    @property
    def command(self) -> list[str]:
        return [
            *(self.rayscan, "tune", self.dataset, "--out", str(self.study), "--trials", str(self.trials)),
            *("--epochs", str(self.epochs), "--family", self.family, "--resolution", str(SIZE)),
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
        wanted = dict.fromkeys(("rows", "ids", "numbers", "suggestions"), self.trials)
        assert counts == {**wanted, "failed": 0}
        for row in self.ask("SELECT epochs, history FROM trials"):
            assert [epoch["epoch"] for epoch in json.loads(row["history"])] == list(range(1, row["epochs"] + 1))
        assert not list(self.study.glob("trials/*/checkpoint.safetensors"))

    def assert_as_unbroken(self, trial_id: str) -> None:
        """The trial, trained again without interruption, has the same figures and weights."""
        store, info = open_store(str(self.study)), read_dataset_info(self.dataset)
        (record,) = [one for one in read_trials(store) if one.trial_id == trial_id]
        job = TrialJob(
            study=store,
            preprocessing=info.preprocessing,
            epochs=self.epochs,
            seed=0,
            threads=1,
            device="cpu",
            objective=read_study(store).objectives[0],
        )
        plan = plan_of(record.parameters, job)
        train, val = load_films(self.dataset, "train"), load_films(self.dataset, "val")
        whole = fit(plan.spec, train, val, plan.training, lambda report, state: report.epoch < record.epochs)
        for name in ("train_loss", "val_auc", "val_loss"):
            assert [epoch[name] for epoch in record.history] == [getattr(report, name) for report in whole.history]
        weights = load_weights(store, trial_id)
        assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict.items())
