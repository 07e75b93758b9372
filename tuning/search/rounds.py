"""One round of a search: Ray Tune runs trials, as many at a time as the cluster holds, until there are enough.

A search has one round, and a second one for its finals.
"""

import logging
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ray import tune
from ray.tune import Stopper
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from models.spec import Scalar
from pipelines import telemetry
from pipelines.progress import live
from pipelines.storage import Store
from tuning.search.board import picture
from tuning.search.ledger import RETRIES, Ledger
from tuning.search.scheduler import FamilyScheduler, Past
from tuning.search.settings import SearchSettings
from tuning.search.setup import SearchSetup
from tuning.search.suggestions import suggestions
from tuning.search.trial import OBJECTIVE, TIME
from tuning.study.records import StartedTrial, TrialKind, TrialRecord, next_number, without_probes
from tuning.study.store import unfinished_trials
from tuning.study.trial_files import load_checkpoint
from tuning.training.objectives import parse_objectives
from tuning.training.schedule import settled

log = logging.getLogger("rayscan")

_QUIET: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # of two objectives, a trial that cannot be trained lacks one: without this it would end the search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def run_round(
    setup: SearchSetup,
    trainable: Any,
    earlier: Sequence[TrialRecord],
    *,
    points: Sequence[Mapping[str, Scalar]] = (),
    finals: Sequence[Mapping[str, Scalar]] | None = None,
    deadline: float,
) -> tuple[list[TrialRecord], bool]:
    """Run trials until there are as many as wanted: the search's, `points` first; or the `finals`, and no others.

    `trainable` is what Ray Tune runs for each, `deadline` a time of `time.monotonic`. Returns what the study has then,
    probes included, and whether somebody interrupted it.
    """
    a_pass = _Pass(points=points, finals=finals, deadline=deadline, failures=Counter())
    records, interrupted, left = _run_pass(setup, trainable, earlier, a_pass)
    while left and not interrupted:
        log.info("%d trials were given up before their time; they are taken up again", left)
        records, interrupted, left = _run_pass(setup, trainable, records, a_pass)
    return records, interrupted


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What the passes of one round share. Most rounds have one: a pass is one run of Ray Tune."""

    points: Sequence[Mapping[str, Scalar]]
    finals: Sequence[Mapping[str, Scalar]] | None
    deadline: float
    failures: Counter[str]
    """How often a trial failed in any pass: after `RETRIES` it is recorded as failed, so the passes end."""

    @property
    def kind(self) -> TrialKind:
        return "search" if self.finals is None else "final"


def _run_pass(
    setup: SearchSetup, trainable: Any, earlier: Sequence[TrialRecord], a_pass: _Pass
) -> tuple[list[TrialRecord], bool, int]:
    """The study's trials then, whether somebody interrupted it, and how many trials another pass is to take up."""
    settings, finals, deadline = setup.settings, a_pass.finals, a_pass.deadline
    patience = settings.patience if a_pass.kind == "search" else 0
    unfinished = unfinished_trials(setup.store, earlier)
    due = [trial for trial in unfinished if (trial.kind == "final") == (a_pass.kind == "final")]
    searcher, wanted = suggestions(setup.space, earlier, settings, unfinished=due, points=a_pass.points, finals=finals)
    objective = parse_objectives(settings.objectives)[0]
    if has_converged(without_probes(earlier), patience, objective.gain):
        log.info("the study has converged: its last %d trials brought no gain", settings.patience)
        wanted = 0
    if not wanted or time.monotonic() >= deadline:
        return list(earlier), False, 0
    resumed = [trial for place, trial in enumerate(due) if place < wanted]
    log.info(
        "%s to run%s, %d at a time, each on %s",
        "trials until the time is up" if math.isinf(wanted) else f"{wanted} {'trials' if finals is None else 'finals'}",
        *(f", {len(resumed)} of them begun before" if due else "", min(setup.room.trials, wanted), setup.room.each),
    )
    telemetry.begin_search()
    ledger = Ledger(
        setup.store,
        earlier,
        planned=len(without_probes(earlier)) + wanted,
        seed=settings.seed,
        deadline=deadline,
        epochs=settings.epochs,
        first_number=next_number(earlier, unfinished),
        metric=objective.name,
        mirror=setup.mirror,
        failures=a_pass.failures,
    )
    scheduler = FamilyScheduler(partial(_league, settings), _past(setup.store, earlier, resumed, a_pass.kind))
    config = _tune_config(setup, searcher, scheduler, wanted, deadline)
    with live(lambda: picture(ledger.board.standing)):
        _run(trainable, config, ledger, Converged(ledger, patience, objective.gain))
    ended = len(ledger.records) - len(without_probes(earlier)) + len(ledger.aside)
    over = has_converged(ledger.records, patience, objective.gain) or time.monotonic() >= deadline
    return [*ledger.probes, *ledger.records], ended < wanted and not over, 0 if over else len(ledger.aside)


def _tune_config(
    setup: SearchSetup, searcher: Searcher, scheduler: FamilyScheduler, wanted: float, deadline: float
) -> tune.TuneConfig:
    return tune.TuneConfig(
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=-1 if math.isinf(wanted) else int(wanted),
        max_concurrent_trials=int(min(setup.room.trials, wanted)),
        time_budget_s=None if math.isinf(deadline) else max(1.0, deadline - time.monotonic()),
        reuse_actors=setup.settings.workers_per_trial == 1,
    )


class Converged(Stopper):
    """Ends a search once so many trials in a row brought no gain."""

    def __init__(self, ledger: Ledger, patience: int, gain: float) -> None:
        self.ledger = ledger
        self.patience = patience
        self.gain = gain

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped for it."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is to end."""
        return has_converged(self.ledger.records, self.patience, self.gain)


def has_converged(records: Sequence[TrialRecord], patience: int, gain: float) -> bool:
    """Whether the best value has not risen by more than `gain` over the last `patience` trials; never for 0."""
    best, since = -math.inf, 0
    for record in sorted(records, key=lambda record: record.finished_at):
        if record.status == "pruned" and record.value is None:  # over the latency's limit: nothing was tried
            continue
        since += 1
        if record.status != "failed" and record.value is not None and record.value > best + gain:
            best, since = record.value, 0
    return 0 < patience <= since


def _league(settings: SearchSettings) -> ASHAScheduler:
    return ASHAScheduler(
        time_attr=TIME,
        metric=OBJECTIVE,
        mode="max",
        max_t=settings.epochs,
        grace_period=min(settings.grace_epochs or settled(settings.epochs), settings.epochs),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,  # a trial that reaches the last epoch ends by itself, so it is complete and not pruned
    )


def _past(store: Store, earlier: Sequence[TrialRecord], resumed: Sequence[StartedTrial], kind: TrialKind) -> Past:
    """The earlier trials of this kind, for the scheduler."""
    checkpoints = {trial.trial_id: load_checkpoint(store, trial.trial_id) for trial in resumed}
    league = [record for record in earlier if record.kind == kind]
    return Past(
        finished=[(record.trial_id, record.model, record.history) for record in league],
        taken_up={name: checkpoint.facts["history"] for name, checkpoint in checkpoints.items() if checkpoint},
    )


def _run(trainable: Any, config: tune.TuneConfig, ledger: Ledger, stop: Converged) -> None:
    """Run the trials. Ray Tune's own state goes to a folder that is thrown away: the study is the ledger's."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="rayscan-tune-") as scratch:
        tune.Tuner(
            trainable,
            tune_config=config,
            run_config=tune.RunConfig(
                name="study",
                storage_path=scratch,
                callbacks=[ledger],
                stop=stop,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        ).fit()
    ledger.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """No log files of Ray Tune and none of its lines on stdout, where results go; our own log says what happens."""
    tune_log = logging.getLogger("ray.tune")
    level = tune_log.level
    before = {name: os.environ.get(name) for name in _QUIET}
    tune_log.setLevel(logging.CRITICAL)
    os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            # for a trial that was tried again: Ray counts its reports from 1 once more, and Optuna keeps the first ones
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            yield
    finally:
        tune_log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
