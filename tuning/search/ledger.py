"""Keeps a study's table while its trials run: a Ray Tune callback in the driver.

Each trial's row comes whole from its last report, and a trial of an earlier run that is continued keeps its name
and number; so a trial that was interrupted, once or often, is one row with one unbroken history.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ray import cloudpickle
from ray.tune import Callback

from pipelines import telemetry
from pipelines.storage import Store
from tuning.search.board import Board, Running
from tuning.search.mirror import Mirror
from tuning.search.room import Waiting
from tuning.search.trial import EXCESS, METRIC, OBJECTIVE, TAKEN_UP, TIME, kind_of, own_id, parameters_of
from tuning.study.failure import brief
from tuning.study.records import (
    StartedTrial,
    TrialRecord,
    TrialStatus,
    next_number,
    without_probes,
)
from tuning.study.store import begin_trial, has_checkpoint, remove_checkpoint, write_trials
from tuning.training.objectives import LATENCY

log = logging.getLogger("rayscan")

RETRIES: Final = 2
"""How often a trial is tried again whose process died, or raised what may be the machine's fault; a node that is taken
away with notice does not count."""


class Ledger(Callback):
    """Writes `STUDY/trials.parquet` as each trial ends; its board tells people.

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
        failures: Counter[str] | None = None,
    ) -> None:
        self.study = study
        self.probes = [record for record in earlier if record.kind == "probe"]
        self.records = without_probes(earlier)
        self.seed = seed
        self.epochs = epochs
        self.mirror = mirror
        self.next_number = next_number(earlier) if first_number is None else first_number
        self.numbers: dict[str, int] = {}
        self.running: dict[str, Any] = {}
        self.begun: dict[str, float] = {}
        self.epochs_seen: dict[str, int] = {}
        self.failures: Counter[str] = Counter() if failures is None else failures
        """By the study's name of a trial, in all passes of a round: how often its process died, or it raised."""
        self.aside: dict[str, Any] = {}
        """Trials that Ray Tune gave up before their time; the round's next pass takes them up."""
        self.entered: set[str] = set()
        """Ray Tune's names of the trials that ended in this pass."""
        self.failed_at: dict[str, int] = {}
        """Ray Tune's step at which a trial failed last."""
        self.waiting = Waiting()
        self.board = Board(self.records, planned=planned, deadline=deadline, metric=metric)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune looked after its trials: show how the search stands, once a second, and say if none has a place.

        New trials are numbered here, before one can die: Ray Tune puts a dead one at the end before it says so.
        """
        self._number(trials)
        if self.board.is_old():
            self._show()
            self.waiting.look(sum(trial.status == trial.PENDING for trial in trials), len(self.running))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Number the trial by the order of the suggestions, and write down what it is, or that it goes on."""
        self._number(trials)
        self.running[trial.trial_id] = trial
        self.begun[trial.trial_id] = time.monotonic()
        telemetry.begin_trial(model=trial.config["family"])
        self._begin(trial)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended; a trial's last report is of no new one."""
        if result[TIME] > self.epochs_seen.get(trial.trial_id, 0):
            self.epochs_seen[trial.trial_id] = result[TIME]
            telemetry.count_epoch(result["epoch_seconds"], model=trial.config["family"])
            if kind_of(trial.config) != "baseline":
                self.board.expect(trial.config["family"], result["epoch_seconds"], self.epochs)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial ended by itself, or the scheduler stopped it."""
        result = trial.last_result
        if result.get("error"):
            self._enter(trial, "failed", error=result["error"])
        elif result.get(EXCESS, 0.0) > 0:
            reason = f"not trained: a film takes {result[LATENCY]:.2f} ms, {result[EXCESS]:.2f} more than the limit"
            self._enter(trial, "pruned", error=reason)
        else:
            self._enter(trial, "complete" if result.get("finished") else "pruned")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died, perhaps as it started, or it raised; it continues in another."""
        failures = self._count_failure(iteration, trials, trial)
        trial.max_failures = trial.num_failures + RETRIES - failures  # Ray Tune knows nothing of an earlier pass
        log.warning("trial %d: %s; %s", self.numbers[trial.trial_id], brief(_error(trial)), self._how_it_goes_on(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial raised, or its process died, once too often; or Ray Tune thinks so.

        Where a process dies as it takes its next trial, Ray Tune tries that trial again and gives it up in the same
        step, since it hears of the one death twice: from the process and from its task. Such a trial is put aside.
        """
        if self._count_failure(iteration, trials, trial) > RETRIES:
            self._enter(trial, "failed", error=brief(_error(trial)))
            return
        self._begin(trial)
        self.aside[trial.trial_id] = self.running.pop(trial.trial_id, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ray Tune tells nobody of a trial that a process could not take over from the trial before it."""
        for trial in trials:
            told = trial.trial_id in self.aside or trial.trial_id in self.entered
            if trial.status == trial.ERROR and not told:
                self.on_trial_error(-1, trials, trial)

    def close(self) -> None:
        """Enter the trials that were under way when time was up or Ctrl-C came, with what they reached.

        Those without a whole epoch leave no row; a resumed search continues them.
        """
        for trial in list(self.running.values()):
            if trial.last_result.get(TIME):
                self._enter(trial, "pruned")
        self.running.clear()
        self._show()
        self._mirror()

    def _number(self, trials: Sequence[Any]) -> None:
        """Trials may not start in the order of the suggestions, and Ray Tune puts one that is retried at the end."""
        for trial in trials:
            if trial.trial_id in self.numbers:
                continue
            if TAKEN_UP in trial.config:
                self.numbers[trial.trial_id] = int(trial.config[TAKEN_UP]["number"])
            else:
                self.numbers[trial.trial_id] = self.next_number
                self.next_number += 1

    def _count_failure(self, iteration: int, trials: Sequence[Any], trial: Any) -> int:
        """How often the trial failed by now, in all passes; one that died as it started has no number yet."""
        self._number(trials)
        name = own_id(trial.config, trial.trial_id)
        with_notice = getattr(_error(trial), "preempted", False)
        if self.failed_at.get(trial.trial_id) != iteration and not with_notice:
            self.failures[name] += 1
        self.failed_at[trial.trial_id] = iteration
        return self.failures[name]

    def _begin(self, trial: Any) -> None:
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

    def _enter(self, trial: Any, status: TrialStatus, *, error: str | None = None) -> None:
        self.running.pop(trial.trial_id, None)
        self.entered.add(trial.trial_id)
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
        self.board.announce(record, self.records)
        self._show()
        self._mirror()

    def _how_it_goes_on(self, trial: Any) -> str:
        """By what is stored, of which a process may have died before it told the driver."""
        stored = has_checkpoint(self.study, own_id(trial.config, trial.trial_id))
        return "it goes on from its last epoch" if stored else "it is tried again"

    def _mirror(self) -> None:
        if self.mirror is not None:
            self.mirror.add_missing([*self.probes, *self.records])

    def _show(self) -> None:
        self.board.show(self.records, [self._running(trial) for trial in self.running.values()])

    def _running(self, trial: Any) -> Running:
        result = trial.last_result or {}
        return Running(
            number=self.numbers[trial.trial_id],
            model=str(trial.config["family"]),
            epoch=result.get(TIME, 0),
            epochs=self.epochs,
            auc=result.get(METRIC),
            seconds=time.monotonic() - self.begun[trial.trial_id],
        )


def _error(trial: Any) -> BaseException | None:
    # `trial.get_pickled_error` looks where this file is copied only later
    path = trial.pickled_error_file
    # Written by this session's own Ray into its private temporary folder; nothing of a study is ever unpickled.
    error: BaseException | None = cloudpickle.loads(Path(path).read_bytes()) if path else None
    return error
