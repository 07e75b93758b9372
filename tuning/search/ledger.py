"""Keeps a study's table while its trials run: a Ray Tune callback in the driver.

Each trial's row comes whole from its last report, and a trial of an earlier run that is taken up keeps its name and
number; so a trial that was interrupted, once or often, is one row with one unbroken history.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback, Stopper

from pipelines import telemetry
from pipelines.storage import Store
from tuning.search.board import Running, Standing, in_words
from tuning.search.mirror import Mirror
from tuning.search.trial import METRIC, OBJECTIVE, TAKEN_UP, TIME, kind_of, own_id, parameters_of
from tuning.study.failure import brief
from tuning.study.records import (
    StartedTrial,
    TrialRecord,
    TrialStatus,
    best_trial,
    count_statuses,
    next_number,
    without_probes,
)
from tuning.study.store import begin_trial, remove_checkpoint, write_trials
from tuning.training.objectives import LATENCY

log = logging.getLogger("rayscan")

GAIN = 0.0005
"""Least gain in AUC that counts as one: a quarter of the standard error of an AUC of 0.996 on 785 films, 575 of them
diseased (Hanley & McNeil 1982)."""


class Ledger(Callback):
    """Writes `STUDY/trials.parquet` as each trial ends, and tells of it in the log and the metrics.

    Ray Tune pickles its callbacks, so a ledger holds nothing but values: no terminal, no open file, no thread.
    """

    def __init__(
        self,
        study: Store,
        earlier: Sequence[TrialRecord],
        *,
        planned: float,
        seed: int,
        deadline: float,
        epochs: int = 0,
        first_number: int | None = None,
        metric: str = METRIC,
        mirror: Mirror | None = None,
    ) -> None:
        self.study = study
        self.probes = [record for record in earlier if record.kind == "probe"]
        self.records = without_probes(earlier)
        self.planned = planned
        self.seed = seed
        self.deadline = deadline
        self.epochs = epochs
        self.metric = metric
        self.mirror = mirror
        self.next_number = next_number(earlier) if first_number is None else first_number
        self.numbers: dict[str, int] = {}
        self.running: dict[str, Any] = {}
        self.begun: dict[str, float] = {}
        self.epochs_seen: dict[str, int] = {}
        self.noted = -math.inf
        self.opened = time.monotonic()
        self.inherited = len(self.records)
        self.standing = self._stand()
        """How the search stood a second ago, for whoever shows it."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune looked after its trials: note how the search stands, once a second."""
        if time.monotonic() - self.noted >= 1:
            self._note()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Number the trial by the order of the suggestions, and write down what it is, or that it goes on."""
        self._number(trials)
        self.running[trial.trial_id] = trial
        self.begun[trial.trial_id] = time.monotonic()
        if TAKEN_UP not in trial.config:
            begin_trial(
                self.study,
                StartedTrial(
                    trial_id=trial.trial_id,
                    number=self.numbers[trial.trial_id],
                    seed=self.seed,
                    parameters=parameters_of(trial.config),
                    kind=kind_of(trial.config),
                ),
            )
        self._note()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended; what a trial reports last tells of no new one."""
        if result[TIME] > self.epochs_seen.get(trial.trial_id, 0):
            self.epochs_seen[trial.trial_id] = result[TIME]
            telemetry.count_epoch(result["epoch_seconds"], model=trial.config["family"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial ended by itself, or the scheduler stopped it."""
        error = trial.last_result.get("error")
        status: TrialStatus = "complete" if trial.last_result.get("finished") else "pruned"
        self._enter(trial, "failed" if error else status, error=error)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died or raised; it goes on in another."""
        log.warning("trial %d: %s; it goes on from its last epoch", self.numbers[trial.trial_id], _why(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial raised, or its process died, once too often."""
        self._enter(trial, "failed", error=_why(trial))

    def close(self) -> None:
        """Enter the trials that were under way when time was up or Ctrl-C came, with what they reached.

        Those without a whole epoch leave no row; a resumed search takes them up.
        """
        for trial in list(self.running.values()):
            if trial.last_result.get(TIME):
                self._enter(trial, "pruned")
        self.running.clear()
        telemetry.set_running(0)
        self._mirror()

    def _number(self, trials: Sequence[Any]) -> None:
        """Trials may start out of the order of the suggestions, and Ray Tune puts one that is retried at the end."""
        for trial in trials:
            if trial.trial_id in self.numbers:
                continue
            if TAKEN_UP in trial.config:
                self.numbers[trial.trial_id] = int(trial.config[TAKEN_UP]["number"])
            else:
                self.numbers[trial.trial_id] = self.next_number
                self.next_number += 1

    def _enter(self, trial: Any, status: TrialStatus, *, error: str | None = None) -> None:
        self.running.pop(trial.trial_id, None)
        result = trial.last_result or {}
        record = TrialRecord(
            trial_id=own_id(trial.config, trial.trial_id),
            number=self.numbers[trial.trial_id],
            kind=kind_of(trial.config),
            status=status,
            model=trial.config["family"],
            parameters=parameters_of(trial.config),
            auc=result[METRIC] if result.get(TIME) else None,
            objective=result.get(OBJECTIVE) if result.get(TIME) else None,
            latency_ms=result.get(LATENCY),
            epochs=result.get(TIME, 0),
            history=json.loads(result.get("history", "[]")),
            seconds=result.get("seconds", 0.0),
            seed=trial.config[TAKEN_UP]["seed"] if TAKEN_UP in trial.config else self.seed,
            error=error,
            finished_at=datetime.now(UTC),
        )
        self.records.append(record)
        write_trials(self.study, [*self.probes, *self.records])
        remove_checkpoint(self.study, record.trial_id)
        self._tell(record)
        self._note()
        self._mirror()

    def _mirror(self) -> None:
        if self.mirror is not None:
            self.mirror.add_missing([*self.probes, *self.records])

    def _tell(self, record: TrialRecord) -> None:
        best = best_trial(self.records)
        telemetry.count_trial(record.status)
        if best is not None and best.value is not None:
            telemetry.set_best_value(best.value, metric=self.metric)
        log.info(
            "trial %d %s%s %s: %s after %d epochs; best %s; %s%s",
            record.number,
            "baseline " if record.kind == "baseline" else "",
            record.model,
            record.status,
            record.error or f"AUC {record.auc:.4f}",
            record.epochs,
            f"{best.value:.4f} (trial {best.number})" if best else "none yet",
            in_words(len(self.records), self.planned),
            "" if math.isinf(self.deadline) else f", {max(0.0, self.deadline - time.monotonic()):.0f} s left",
        )

    def _note(self) -> None:
        self.noted = time.monotonic()
        telemetry.set_running(len(self.running))
        self.standing = self._stand()

    def _stand(self) -> Standing:
        best = best_trial(self.records)
        now = time.monotonic()
        ran = len(self.records) - self.inherited
        pace = (now - self.opened) / ran if ran else math.inf
        left = min(self.deadline - now, pace * (self.planned - len(self.records)))
        return Standing(
            running=tuple(
                Running(
                    number=self.numbers[trial.trial_id],
                    model=str(trial.config["family"]),
                    epoch=trial.last_result.get(TIME, 0) if trial.last_result else 0,
                    epochs=self.epochs,
                    auc=trial.last_result.get(METRIC) if trial.last_result else None,
                    seconds=now - self.begun[trial.trial_id],
                )
                for trial in self.running.values()
            ),
            counts=count_statuses(self.records),
            planned=self.planned,
            best=None if best is None else f"{best.value:.4f}, {best.model}, trial {best.number}",
            seconds_left=None if math.isinf(left) else max(0.0, left),
        )


class Converged(Stopper):
    """Ends a search once so many trials in a row brought no gain."""

    def __init__(self, ledger: Ledger, patience: int) -> None:
        self.ledger = ledger
        self.patience = patience

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped for it."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is to end."""
        return has_converged(self.ledger.records, self.patience)


def has_converged(records: Sequence[TrialRecord], patience: int) -> bool:
    """Whether the best value has not risen by more than GAIN over the last `patience` trials; never for 0."""
    best, since = -math.inf, 0
    for record in sorted(records, key=lambda record: record.finished_at):
        since += 1
        if record.status != "failed" and record.value is not None and record.value > best + GAIN:
            best, since = record.value, 0
    return 0 < patience <= since


def _why(trial: Any) -> str:
    # `trial.get_pickled_error` looks where this file is copied only later
    path = trial.pickled_error_file
    # Written by this session's own Ray into its private temporary folder; nothing of a study is ever unpickled.
    return brief(cloudpickle.loads(Path(path).read_bytes()) if path else None)
