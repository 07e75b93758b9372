"""Successive halving within families: a trial is stopped for doing worse than others of its own family.

An mlp is nearly trained after two epochs where a cnn has hardly begun; compared with each other, Ray's ASHA stopped
every cnn of a study on real films after its second epoch, the best ones of the space among them. Baselines are never
stopped: they are there to be compared with at their best.

A scheduler's state ends with Ray Tune's driver. A resumed search replays the earlier trials' epochs, from the table and
the checkpoints, so that the rungs stand where they stood.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tuning.search.trial import TAKEN_UP, kind_of, measures

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


History = Sequence[Mapping[str, Any]]
"""`EpochReport` of each epoch of a trial."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a search's scheduler is to know of its earlier runs."""

    finished: Sequence[tuple[str, str, History]] = ()
    """(trial id, family, history) of each trial that ended, baselines left out."""
    taken_up: Mapping[str, History]
    """Of each trial that is continued, by its id in the study."""


NO_PAST = Past(taken_up={})


class FamilyScheduler(FIFOScheduler):
    """One ASHA scheduler per family, its league, made by `league()` when its first trial comes."""

    def __init__(self, league: Callable[[], ASHAScheduler], past: Past = NO_PAST) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._league = league
        self._past = past
        self._leagues: dict[str, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        """Enter a trial into its family's league."""
        if (league := self._of(trial)) is not None:
            league.on_trial_add(tune_controller, trial)
            if TAKEN_UP in trial.config:
                _replay(league, trial, self._past.taken_up.get(trial.config[TAKEN_UP]["trial_id"], ()))

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
        if kind_of(trial.config) == "baseline":
            return None
        family = str(trial.config.get("family"))
        if family not in self._leagues:
            self._leagues[family] = league = self._league()
            for trial_id, trial_family, history in self._past.finished:
                if trial_family == family:
                    earlier = Trial("earlier", trial_id=trial_id, stub=True)
                    league.on_trial_add(None, earlier)  # type: ignore[arg-type]
                    _replay(league, earlier, history)
        return self._leagues[family]


def _replay(league: ASHAScheduler, trial: Trial, history: History) -> None:
    """Report a trial's epochs to its league, whose decisions on them no longer matter."""
    for report in measures(history):
        league.on_trial_result(None, trial, report)  # type: ignore[arg-type]
