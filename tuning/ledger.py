"""Keeps a study's table while its trials run: a Ray Tune callback in the driver.

Each trial's row comes whole from its last report, so a trial that is retried after its node was taken away leaves no
trace of the first attempt.
"""

import json
import logging
import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback

from pipelines import telemetry
from pipelines.storage import Store
from tuning.objectives import LATENCY
from tuning.space import BASELINE
from tuning.study import TrialRecord, TrialStatus, best_trial, write_trials
from tuning.trial import METRIC, OBJECTIVE, TIME

log = logging.getLogger("rayscan")

_PATH = re.compile(r"""['"]?[^\s'"]*[/\\].*""")


class Ledger(Callback):
    """Writes `STUDY/trials.parquet` as each trial ends, and logs a line for it."""

    def __init__(
        self, study: Store, earlier: Sequence[TrialRecord], *, planned: int, seed: int, deadline: float
    ) -> None:
        self.study = study
        self.records = list(earlier)
        self.planned = planned
        self.seed = seed
        self.deadline = deadline
        self.first_number = 1 + max((record.number for record in earlier), default=-1)
        self.numbers: dict[str, int] = {}
        self.running: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Number the trial by the order of the suggestions; trials may start out of it."""
        self.numbers[trial.trial_id] = self.first_number + trials.index(trial)
        self.running[trial.trial_id] = trial

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial ended by itself, or the scheduler stopped it."""
        self._enter(trial, "complete" if trial.last_result.get("finished") else "pruned")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial raised, or its process died."""
        # `trial.get_pickled_error` looks where this file is copied only later
        path = trial.pickled_error_file
        # Written by this session's own Ray into its private temporary folder; nothing of a study is ever unpickled.
        error = cloudpickle.loads(Path(path).read_bytes()) if path else None
        self._enter(trial, "failed", error=brief(error))

    def close(self) -> None:
        """Enter the trials that were under way when time was up or Ctrl-C came, with what they reached.

        Those without a whole epoch leave no row; a resumed search may suggest them again.
        """
        for trial in list(self.running.values()):
            if trial.last_result.get(TIME):
                self._enter(trial, "pruned")

    def _enter(self, trial: Any, status: TrialStatus, *, error: str | None = None) -> None:
        self.running.pop(trial.trial_id, None)
        result = trial.last_result or {}
        record = TrialRecord(
            trial_id=trial.trial_id,
            number=self.numbers[trial.trial_id],
            status=status,
            model=trial.config["family"],
            parameters=dict(trial.config),
            auc=result.get(METRIC),
            objective=result.get(OBJECTIVE),
            latency_ms=result.get(LATENCY),
            epochs=result.get(TIME, 0),
            history=json.loads(result.get("history", "[]")),
            seconds=result.get("seconds", 0.0),
            seed=self.seed,
            error=error,
            finished_at=datetime.now(UTC),
        )
        self.records.append(record)
        write_trials(self.study, self.records)
        self._tell(record)

    def _tell(self, record: TrialRecord) -> None:
        best = best_trial(self.records)
        telemetry.count_trial(record.status)
        if best is not None and best.auc is not None:
            telemetry.set_best_value(best.auc, metric=METRIC)
        log.info(
            "trial %d %s%s %s: %s after %d epochs; best %s; %d of %d trials%s",
            record.number,
            "baseline " if BASELINE in record.parameters else "",
            record.model,
            record.status,
            record.error or f"AUC {record.auc:.4f}",
            record.epochs,
            f"{best.auc:.4f} (trial {best.number})" if best else "none yet",
            len(self.records),
            self.planned,
            "" if math.isinf(self.deadline) else f", {max(0.0, self.deadline - time.monotonic()):.0f} s left",
        )


def brief(error: BaseException | None) -> str:
    """One short line on why a trial failed, cut where a path or URI begins: file names may name patients."""
    cause = getattr(error, "cause", None) or error
    if cause is None:
        return "the trial's process died"
    first = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {_PATH.sub('<path>', first)}"[:200]
