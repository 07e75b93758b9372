"""Successive halving among equals: a trial is stopped for doing worse than others of its own family.

An mlp is near its end after two epochs where a cnn has hardly begun; in one league, Ray's ASHA stopped every cnn of a
study on real films after its second epoch, the best ones of the space among them. Baselines play in no league: they
are there to be compared with at their best.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tuning.space import BASELINE

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class FamilyScheduler(FIFOScheduler):
    """One ASHA scheduler a family, each made by `league()` when its first trial comes."""

    def __init__(self, league: Callable[[], ASHAScheduler]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._league = league
        self._leagues: dict[str, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Enter a trial into its family's league."""
        if (league := self._of(trial)) is not None:
            league.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]) -> str:
        """Ask the league whether the trial goes on."""
        league = self._of(trial)
        if league is None:
            return TrialScheduler.CONTINUE
        return str(league.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]) -> None:
        """Tell the league how the trial ended."""
        if (league := self._of(trial)) is not None:
            league.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Take a trial that failed out of its league."""
        if (league := self._of(trial)) is not None:
            league.on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """What Ray prints of a scheduler."""
        return f"ASHA within each family: {', '.join(self._leagues) or 'none yet'}"

    def _of(self, trial: Trial) -> ASHAScheduler | None:
        if trial.config.get(BASELINE):
            return None
        family = str(trial.config.get("family"))
        if family not in self._leagues:
            self._leagues[family] = self._league()
        return self._leagues[family]
