"""Tells Optuna how each trial went: Ray's own OptunaSearch calls a stopped trial complete, and a failed one nothing.

To the sampler, a value reached after two epochs of eight is then as final as any, and a trial that cannot be trained
stays under way for ever. Here a trial that the scheduler stopped is PRUNED, with the value after each of its epochs;
one that failed is FAIL. With several objectives Optuna knows neither values along the way nor pruning: a trial that was
stopped is COMPLETE with what it reached.

A limit of the latency is a constraint of the study, which `TPESampler` heeds: a trial that exceeds it is PRUNED without
any value, because it was not trained.
"""

import math
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from tuning.search.trial import EXCESS, OBJECTIVE, TIME
from tuning.training.objectives import LATENCY


class Searcher(OptunaSearch):
    """Ray Tune's searcher on an Optuna study; `result` is what `tuning.search.trial.Progress` reports."""

    @property
    def study(self) -> optuna.Study:
        """What the sampler knows."""
        study: Any = self._ot_study  # Ray's annotation lacks it
        assert isinstance(study, optuna.Study)
        return study

    @property
    def metrics(self) -> list[str]:
        """What is searched for; Ray's annotation of `metric` knows only one."""
        metric: Any = self.metric
        return list(metric) if isinstance(metric, list) else [metric]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch ended. Its step is the epoch: Ray's own count starts anew when a trial is tried again."""
        if len(self.metrics) == 1 and result[TIME] and trial_id not in self._completed_trials:
            self._ot_trials[trial_id].report(result[OBJECTIVE], result[TIME])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial ended by itself, was stopped, or failed; Ray Tune may say so twice."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        trial = self._ot_trials[trial_id]
        excess = (result or {}).get(EXCESS)
        if excess is not None:
            trial.set_constraint(LATENCY, excess)
            if excess > 0:
                self.study.tell(trial, state=TrialState.PRUNED)
                return
        values = [(result or {}).get(metric, math.nan) for metric in self.metrics]
        if error or not result or result.get("error") or any(math.isnan(value) for value in values):
            self.study.tell(trial, state=TrialState.FAIL)
        elif result.get("finished") or len(values) > 1:
            self.study.tell(trial, values)
        else:
            trial.report(values[0], result[TIME])  # Ray Tune passes on no report for which it stops a trial
            self.study.tell(trial, state=TrialState.PRUNED)
