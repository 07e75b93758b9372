"""A finished trial of a study as Optuna keeps one: for its samplers, and for people who look at the study."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from models.spec import Scalar
from tuning.search.trial import OBJECTIVE, TIME, measures
from tuning.spaces.domain import Suggest
from tuning.study.records import TrialRecord
from tuning.training.objectives import LATENCY


def frozen_trial(
    record: TrialRecord,
    ask: Callable[[Suggest], Any] | None,
    objectives: int = 1,
    *,
    parameters: Mapping[str, Scalar] | None = None,
    most_ms: float | None = None,
    **details: Any,
) -> FrozenTrial:
    """The trial with its values of the first `objectives` of (value, latency).

    `ask` is the space its parameters were suggested by, which is asked again to learn their distributions; None for a
    trial that no space suggested, whose parameters are left out. `parameters` take the place of the record's. A trial
    that failed, or lacks a value, is FAIL; a pruned one of a single objective is PRUNED, and so is one that the
    latency's limit `most_ms` kept from being trained. The intermediate values of a
    single objective are the best so far after each epoch, as the search reported them while the trial ran: the last one
    is the trial's value, which is how Optuna values a pruned trial. `details` are those of
    `optuna.trial.create_trial`.
    """
    values = [value for value in (record.value, record.latency_ms)[:objectives] if value is not None]
    excess = None if most_ms is None or record.latency_ms is None else record.latency_ms - most_ms
    if excess is not None and excess > 0 and record.status == "pruned":
        state, values = TrialState.PRUNED, []
    elif record.status == "failed" or len(values) < objectives:
        state = TrialState.FAIL
    else:
        state = TrialState.PRUNED if objectives == 1 and record.status == "pruned" else TrialState.COMPLETE
    replay = FixedTrial(dict(record.parameters if parameters is None else parameters))
    if ask is not None:
        ask(replay)
    return optuna.trial.create_trial(
        state=state,
        values=None if state == TrialState.FAIL else values or None,
        params=replay.params if replay.distributions else {},
        distributions=replay.distributions,
        intermediate_values={int(at[TIME]): at[OBJECTIVE] for at in measures(record.history)}
        if objectives == 1
        else {},
        constraints=None if excess is None else {LATENCY: excess},
        **details,
    )
