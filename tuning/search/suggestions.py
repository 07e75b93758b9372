"""What suggests a search's trials: Optuna's study, filled with the trials that are known beforehand.

The sampler learns from finished trials; unfinished ones, baselines, points to begin with and a grid's points are
enqueued. The study is handed to Ray's OptunaSearch by its storage; OptunaSearch's own `points_to_evaluate` was refused,
because it can mark no trial as a baseline.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from models.spec import Scalar
from tuning.search.frozen_trial import frozen_trial
from tuning.search.searcher import Searcher
from tuning.search.settings import SearchSettings
from tuning.search.trial import OBJECTIVE, TAKEN_UP
from tuning.spaces.domain import Suggest
from tuning.spaces.space import BASELINE, BASELINES, GIVEN, KIND, SearchSpace, leaves
from tuning.study.records import StartedTrial, TrialRecord, next_number, without_probes
from tuning.training.objectives import LATENCY, latency_limit, parse_objectives

_STUDY_NAME: Final = "rayscan"  # of the study in memory; OptunaSearch finds it in the storage by this name


def suggestions(
    space: SearchSpace,
    earlier: Sequence[TrialRecord],
    settings: SearchSettings,
    *,
    unfinished: Sequence[StartedTrial] = (),
    points: Sequence[Mapping[str, Scalar]] = (),
    finals: Sequence[Mapping[str, Scalar]] | None = None,
) -> tuple[Searcher, float]:
    """What suggests the trials, knowing the earlier ones; and how many are still to run, which may be infinite.

    First come the unfinished ones, then the baselines and the `points`, which may leave parameters to the sampler.
    `finals` have all their parameters; where they are given, nothing else is suggested.
    """
    objectives = parse_objectives(settings.objectives)
    storage = optuna.storages.InMemoryStorage()
    # the same seed would repeat the suggestions of the first run
    sampler = _sampler(settings.search, settings.seed + next_number(earlier, unfinished))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage,
        sampler=sampler,
        study_name=_STUDY_NAME,
        directions=[objective.direction for objective in objectives],
    )
    sampled = [record for record in earlier if record.kind == "search"]
    limit = latency_limit(settings.objectives)
    study.add_trials([frozen_trial(record, space, len(objectives), most_ms=limit) for record in sampled])
    for trial in unfinished:
        _take_up(study, trial)
    begun: list[TrialRecord | StartedTrial] = [*earlier, *unfinished]
    if finals is None:
        searched = [record for record in without_probes(earlier) if record.kind != "final"]
        wanted = max(0, settings.most_trials - len(searched))
        fresh = _enqueue(study, space if settings.search == "grid" else None, begun, points)
        if settings.search == "grid":
            wanted = len(unfinished) + fresh
    else:
        wanted = len(unfinished) + _enqueue_finals(study, begun, finals)
    metrics = [OBJECTIVE, LATENCY][: len(objectives)]
    modes: list[str] = [objective.mode for objective in objectives]
    searcher = Searcher(
        space=_ResumableSpace(space),
        metric=metrics if len(metrics) > 1 else metrics[0],
        mode=modes if len(modes) > 1 else modes[0],
        sampler=sampler,
        storage=storage,
        study_name=_STUDY_NAME,
    )
    return searcher, wanted


@dataclass(frozen=True)
class _ResumableSpace:
    """A space some of whose enqueued trials continue those of an earlier run."""

    space: SearchSpace

    def __call__(self, trial: Suggest) -> dict[str, Any]:
        constants: dict[str, Any] = self.space(trial)
        if taken_up := trial.user_attrs.get(TAKEN_UP):
            return {**constants, TAKEN_UP: taken_up}
        return constants


def _take_up(study: optuna.Study, trial: StartedTrial) -> None:
    """Enqueue a trial that an earlier run began, under the name it had."""
    attributes: dict[str, Any] = {TAKEN_UP: {name: getattr(trial, name) for name in ("trial_id", "number", "seed")}}
    parameters: dict[str, Scalar] = trial.parameters
    if trial.kind == "baseline":
        attributes[BASELINE], parameters = parameters["family"], {}
    elif trial.kind == "final":
        attributes[GIVEN], parameters = _as_final(parameters), {}
    study.enqueue_trial(parameters, user_attrs=attributes)


def _enqueue(
    study: optuna.Study,
    grid: SearchSpace | None,
    begun: Sequence[TrialRecord | StartedTrial],
    points: Sequence[Mapping[str, Scalar]],
) -> int:
    """Enqueue the baselines and points, or the grid's points, that have not begun yet; how many."""
    done = {trial.parameters["family"] for trial in begun if trial.kind == "baseline"}
    baselines = [name for name in BASELINES if name not in done]
    for name in baselines:
        study.enqueue_trial({}, user_attrs={BASELINE: name})
    every = points if grid is None else leaves(grid)
    fresh = [point for point in every if not any(point.items() <= trial.parameters.items() for trial in begun)]
    for point in fresh:
        study.enqueue_trial(dict(point))
    return len(baselines) + len(fresh)


def _enqueue_finals(
    study: optuna.Study, begun: Sequence[TrialRecord | StartedTrial], finals: Sequence[Mapping[str, Scalar]]
) -> int:
    """Enqueue the finals that have not begun yet; how many."""
    done = [trial.parameters for trial in begun if trial.kind == "final"]
    fresh = [final for final in finals if final not in done]
    for final in fresh:
        study.enqueue_trial({}, user_attrs={GIVEN: _as_final(final)})
    return len(fresh)


def _as_final(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The configuration of a final with these parameters."""
    return {**parameters, KIND: "final"}


def _sampler(name: str, seed: int) -> BaseSampler:
    if name != "tpe":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # without `group`, TPE models a conditional space one parameter at a time (and any space that has a baseline, as
        # that has no parameters)
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True)
