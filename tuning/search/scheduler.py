"""Successive halving among equals: a trial is stopped for doing worse than others of its own family.

An mlp is near its end after two epochs where a cnn has hardly begun; in one league, Ray's ASHA stopped every cnn of a
study on real films after its second epoch, the best ones of the space among them. Baselines play in no league: they
are there to be compared with at their best.

Ray Tune forgets a scheduler's state with its driver. A search that goes on feeds the leagues from what the table and
the checkpoints say of each epoch of the earlier trials, so that the bar stands where it stood.
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
    """What the earlier runs of a search left for its scheduler."""

    finished: Sequence[tuple[str, str, History]] = ()
    """(trial id, family, history) of each trial that ended, baselines left out."""
    taken_up: Mapping[str, History]
    """Of each trial that is to go on, by its id in the study."""


NO_PAST = Past(taken_up={})


class FamilyScheduler(FIFOScheduler):
    """One ASHA scheduler a family, each made by `league()` when its first trial comes."""

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
            for trial_id, of, history in self._past.finished:
                if of == family:
                    earlier = Trial("earlier", trial_id=trial_id, stub=True)
                    league.on_trial_add(None, earlier)  # type: ignore[arg-type]
                    _replay(league, earlier, history)
        return self._leagues[family]


def _replay(league: ASHAScheduler, trial: Trial, history: History) -> None:
    """Enter a trial's epochs; what the league says to them now no longer matters."""
    for report in measures(history):
        league.on_trial_result(None, trial, report)  # type: ignore[arg-type]
