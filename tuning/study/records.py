"""What a study is and what its trials came to, as values: no files, no torch. `tuning/study/store.py` keeps them.

A study's trials are of four kinds. Most are suggested by the search itself. Baselines come first and are what it has to
beat. Probes are heads on frozen features: cheap, and not models. Finals are the best trials, trained once more on films
of the data set's own size.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

from models.spec import Scalar
from tuning.training.objectives import AUC, LATENCY, latency_limit, pareto_front, parse_objectives

TrialStatus = Literal["complete", "pruned", "failed"]
TrialKind = Literal["search", "baseline", "probe", "final"]

_MARKS: Final[tuple[TrialKind, ...]] = ("baseline", "probe", "final")
"""Studies from before `TrialRecord.kind` wrote these among the parameters, as in `"baseline": true`."""


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """What all trials of a study share, so that their AUCs may be compared."""

    dataset: str
    """URI of the dataset."""
    fingerprint: str
    """Of the dataset's films, labels, splits and preprocessing."""
    space: dict[str, Any]
    """`SearchSpace.to_json()`."""
    settings: dict[str, Any]
    """`SearchSettings` of the run that began it."""

    @property
    def epochs(self) -> int:
        """Of a trial that is not stopped early."""
        return int(self.settings["epochs"])

    @property
    def objectives(self) -> list[str]:
        """What the search is for; the trials are ranked by the first."""
        return [objective.name for objective in parse_objectives(self.settings.get("objectives", [AUC]))]

    @property
    def latency_limit(self) -> float | None:
        """Milliseconds a film may take; slower architectures were not trained."""
        return latency_limit(self.settings.get("objectives", [AUC]))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StartedTrial:
    """What a trial is, written down as it starts, so that an interrupted search can continue it."""

    trial_id: str
    number: int
    """As in `TrialRecord`."""
    seed: int
    """Of the training."""
    parameters: dict[str, Scalar]
    kind: TrialKind = "search"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StartedTrial":
        """The inverse of `asdict`; also reads what was written before trials had a kind."""
        return cls(**{**value, **_kind_and_parameters(value.get("kind"), value["parameters"])})


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One finished trial: a row of `contracts.TRIALS`."""

    trial_id: str
    number: int
    """Its place in the order in which the study's trials were suggested, from 0."""
    kind: TrialKind = "search"
    status: TrialStatus
    """`pruned`: stopped early, by the scheduler or because time was up; its best epoch counts all the same."""
    model: str
    parameters: dict[str, Scalar]
    auc: float | None
    """Of its best epoch on the validation films: mostly the maximum of noisy values, so a little too high, and the more
    so the more epochs a trial had. None where no epoch ended."""
    objective: float | None = None
    """Value of the study's first objective, of the same epoch; None in studies from before there was any but the
    AUC."""
    latency_ms: float | None = None
    """Per film, on the engine of the trial's machine; None if not measured."""
    epochs: int
    history: list[dict[str, Any]]
    """`EpochReport` of each epoch."""
    seconds: float
    seed: int
    """Of the training: initial weights, order of the films, augmentation."""
    error: str | None = None
    finished_at: datetime

    @property
    def value(self) -> float | None:
        """What the trial is ranked by."""
        return self.auc if self.objective is None else self.objective

    @property
    def result(self) -> float:
        """The value of a trial that has one, such as those on the leaderboard."""
        assert self.value is not None
        return self.value

    @property
    def started_at(self) -> datetime:
        """Its end less the seconds it took; a trial that was interrupted began earlier."""
        return self.finished_at - timedelta(seconds=self.seconds)

    def to_row(self) -> dict[str, Any]:
        """As a row of `contracts.TRIALS`."""
        row = asdict(self)
        return row | {"parameters": json.dumps(self.parameters), "history": json.dumps(self.history)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "TrialRecord":
        """The inverse of `to_row`; also reads rows from before trials had a kind.

        Raises `ValueError`, `TypeError` or `KeyError` for what is no such row.
        """
        values = {**row, "history": json.loads(row["history"])}
        return cls(**{**values, **_kind_and_parameters(row.get("kind"), json.loads(row["parameters"]))})


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a search did."""

    study: str
    trials: dict[str, int]
    """How many trials of the whole study ended `complete`, `pruned`, `failed`."""
    ran: int
    """How many of them this run added."""
    best_trial: str
    best_number: int
    model: str
    parameters: dict[str, Scalar]
    auc: float
    """Of the best trial, on the validation films; chosen among many, so optimistic. The test split is untouched."""
    auc_elsewhere: float | None
    """The expected AUC on other patients of the same archive (`tuning/study/optimism.py`); None if not known."""
    auc_perturbed: Mapping[str, Any] | None
    """Of the model on perturbed copies of validation films, the only hint of another archive: `mean` over the changes,
    and the `worst` with its `change`; None in bundles of earlier versions."""
    ensemble: dict[str, float] | None
    """Of an ensemble of trials compared with the best one: `gain` in AUC with `low` and `high`, on films that did not
    choose it, `cost` (times as slow) and `members`; None where none is better, or it is not known."""
    bundle: str
    model_id: str
    seconds: float
    objective: float | None = None
    """Value of the best trial's first objective."""
    front: tuple[int, ...] = ()
    """Numbers of the trials on the Pareto front, with several objectives; the best trial is the one of them with the
    best first objective."""
    probes: int = 0
    """Heads on frozen features tried in the whole study."""
    confirmed: Sequence[Mapping[str, Any]] = ()
    """Of trials that were trained anew over folds, the first of the leaderboard first: `number`, `auc` (mean over
    folds), `sd`, `low` and `high` (pooled), `search_auc`, `optimism`; or `number` and `error`:
    `tuning/study/confirm.py`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def leaderboard(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials with a result, the best value first; of equals, the faster model, then the earlier. Probes are no models.

    The one order of a study's trials: the search promotes the first, and the study's page shows it first. Where the
    latency is an objective, too, the first is on the Pareto front: the fastest of those that are as good.
    """
    ranked = [record for record in without_probes(records) if record.status != "failed" and record.value is not None]
    return sorted(ranked, key=lambda record: (-record.result, record.latency_ms or 0.0, record.number))


def front_of(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials with a latency that no other beats in value and latency, in the order of the leaderboard."""
    timed = [record for record in leaderboard(records) if record.latency_ms is not None]
    points = [(record.result, record.latency_ms or 0.0) for record in timed]
    return [timed[place] for place in pareto_front(points, parse_objectives([AUC, LATENCY]))]


def on_perturbed(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The AUC on perturbed copies in a bundle's evaluation, as `StudySummary.auc_perturbed`."""
    measured = entry.get("robustness")
    if measured is None:
        return None
    change = min(measured["changed"], key=lambda name: measured["changed"][name]["auc"])
    return {"mean": measured["mean_auc"], "worst": measured["changed"][change]["auc"], "change": change}


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The first of the leaderboard, if any."""
    return next(iter(leaderboard(records)), None)


def count_statuses(records: Sequence[TrialRecord]) -> dict[str, int]:
    """How many trials ended `complete`, `pruned`, `failed`; zero included."""
    counts = Counter(record.status for record in records)
    return {status: counts[status] for status in get_args(TrialStatus)}


def without_probes(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The rows that are models: all but the probes."""
    return [record for record in records if record.kind != "probe"]


def next_number(records: Sequence[TrialRecord], unfinished: Sequence[StartedTrial] = ()) -> int:
    """Of the trial that is suggested next."""
    numbers = [record.number for record in records] + [trial.number for trial in unfinished]
    return 1 + max(numbers, default=-1)


def _kind_and_parameters(kind: str | None, parameters: Mapping[str, Scalar]) -> dict[str, Any]:
    """Both fields; with no kind, from before there was one, it is found among the parameters."""
    if kind is None:
        kind = next((mark for mark in _MARKS if mark in parameters), "search")
        parameters = {name: value for name, value in parameters.items() if name not in _MARKS}
    if kind not in get_args(TrialKind):
        raise ValueError(f"a trial of the kind {kind!r}, which this version of rayscan does not know")
    return {"kind": kind, "parameters": dict(parameters)}
