"""A study on storage: what was searched, every trial, the weights of each, and the leaderboard.

    STUDY/study.json                         dataset, fingerprint, space, settings: put first, create-only
    STUDY/trials.parquet                     contracts.TRIALS, put anew as each trial ends
    STUDY/trials/<trial_id>/trial.json       what the trial is: put as it starts, create-only
    STUDY/trials/<trial_id>/weights.safetensors      its best epoch, put by the trial whenever it improves
    STUDY/trials/<trial_id>/checkpoint.safetensors   its whole state, put after each epoch, removed when it has ended
    STUDY/trials/<trial_id>/val_logits.safetensors   what that epoch says of the validation films
    STUDY/findings.json                      what came of it, put when the search ends: see tuning/study/findings.py
    STUDY/recipes/<number>.toml              how its best trials are made, for `train` and `crossvalidate --recipe`
    STUDY/best/                              the bundle of the winner

A trial that has a trial.json and no row in the table was under way when its search was killed, and is taken up again.

All of it is JSON, Parquet and safetensors: taking a study up again unpickles nothing, unlike Ray Tune's own experiment
state, which is therefore thrown away.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from models.errors import InputError
from models.spec import Scalar
from pipelines import contracts
from pipelines.errors import NotFoundError
from pipelines.storage import Store
from tuning.spaces.space import PROBE
from tuning.spaces.space_file import differences
from tuning.study.info import STUDY, StudyInfo, check_goes_on, in_use, read_study, require_free
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import StateDict
from tuning.training.objectives import pareto_front, parse_objectives

__all__ = [
    "BEST",
    "FINDINGS",
    "LOGITS",
    "RECIPES",
    "STUDY",
    "TRIALS",
    "StartedTrial",
    "StudyInfo",
    "StudySummary",
    "TrialRecord",
    "TrialStatus",
    "begin_study",
    "begin_trial",
    "best_trial",
    "brief",
    "count_statuses",
    "leaderboard",
    "load_checkpoint",
    "load_logits",
    "load_weights",
    "next_number",
    "read_study",
    "read_trials",
    "remove_checkpoint",
    "remove_stale_checkpoints",
    "save_checkpoint",
    "save_logits",
    "save_weights",
    "study_front",
    "unfinished_trials",
    "weights_key",
    "without_probes",
    "write_trials",
]

TrialStatus = Literal["complete", "pruned", "failed"]

TRIALS = "trials.parquet"
BEST = "best"
FINDINGS = "findings.json"
RECIPES = "recipes"
LOGITS = "val_logits.safetensors"
_TRIAL = "trial.json"
_CHECKPOINT = "checkpoint.safetensors"
_PATH = re.compile(
    r"""
    (?<!\w)(?P<quote>['"])              # quoted, as Python writes a text with repr():
    (?=(?:(?!(?P=quote))[^/\\])*[/\\])  # with a slash before the quote ends,
    (?:\\.|(?!(?P=quote)(?!\w))[^\\])*  # up to where it does (a quote before a letter is of the name),
    (?:(?P=quote)|$)                    # or to the end of the line
    |
    (?:[^\s'"]|(?<=\w)['"])*[/\\]        # or as it is: from the word that has a slash
    .*?(?=:[ ]|;[ ]|$)                  # up to the next colon or semicolon: names may hold spaces
    """,
    re.VERBOSE,
)
"""A path or URI in a message."""


@dataclass(frozen=True, kw_only=True)
class StartedTrial:
    """What a trial is, written down as it starts, so that it can be taken up again."""

    trial_id: str
    number: int
    """As in `TrialRecord`."""
    seed: int
    """Of the training."""
    parameters: dict[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One finished trial: a row of `contracts.TRIALS`."""

    trial_id: str
    number: int
    """Its place in the order in which the study's trials were suggested, from 0."""
    status: TrialStatus
    """`pruned`: stopped early, by the scheduler or because time was up; its best epoch counts all the same."""
    model: str
    parameters: dict[str, Scalar]
    auc: float | None
    """Of its best epoch on the validation films: mostly the maximum of noisy values, so a little too high, and the more
    so the more epochs a trial had. None where no epoch ended."""
    objective: float | None = None
    """Of the same epoch, what the search is for; None in studies from before there was anything but the AUC."""
    latency_ms: float | None = None
    """A film on the engine of the trial's machine; None where nobody asked."""
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

    def to_row(self) -> dict[str, Any]:
        """As a row of `contracts.TRIALS`."""
        row = asdict(self)
        return row | {"parameters": json.dumps(self.parameters), "history": json.dumps(self.history)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "TrialRecord":
        """The inverse of `to_row`."""
        values = dict(row)
        values |= {"parameters": json.loads(row["parameters"]), "history": json.loads(row["history"])}
        return cls(**values)


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
    """The expected AUC on films that had no part in the choice (`tuning/study/optimism.py`); None if not known."""
    ensemble: dict[str, float] | None
    """Of an ensemble of trials over the best one: `gain` in AUC with `low` and `high`, on films that did not choose it,
    `cost` (times as slow) and `members`; None where none is better, or it is not known."""
    bundle: str
    model_id: str
    seconds: float
    objective: float | None = None
    """Of the best trial, where the search was for something else than the AUC."""
    front: tuple[int, ...] = ()
    """Numbers of the trials that no other beats in all objectives, where there are several; the best trial is the one
    of them with the best first objective."""
    probes: int = 0
    """Heads on frozen features tried in the whole study."""
    confirmed: Sequence[Mapping[str, Any]] = ()
    """Of trials that were trained anew over folds, the first of the leaderboard first: `number`, `auc` (mean over
    folds), `sd`, `low` and `high` (pooled), `search_auc`, `optimism`; or `number` and `error`:
    `tuning/study/confirm.py`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def begin_study(store: Store, info: StudyInfo, *, resume: bool) -> list[TrialRecord]:
    """Make STUDY, or with `resume` take it up again; return the trials it has.

    Raises `InputError` where STUDY holds anything and `resume` is off, where there is nothing to resume, and where the
    study is of other films, another space or another number of epochs.
    """
    if resume:
        _check_same(store, read_study(store), info)
        return read_trials(store)
    require_free(store)
    # create-only: of two searches started together on one STUDY, one is told so
    if not store.create(STUDY, json.dumps(info.to_json(), indent=2).encode()):
        raise in_use(store)
    return []


def _check_same(store: Store, old: StudyInfo, new: StudyInfo) -> None:
    check_goes_on(store, old, dataset=new.dataset, fingerprint=new.fingerprint, settings=new.settings)
    if old.space != new.space:
        raise InputError(
            f"{store.root} was begun with another search space ({differences(old.space, new.space)}); "
            "resume it with the same, or give another --out"
        )


def read_trials(store: Store) -> list[TrialRecord]:
    """Every finished trial, in the order of their numbers; empty where none has finished yet."""
    try:
        table = pq.read_table(pa.BufferReader(store.get(TRIALS)))
    except NotFoundError:
        return []
    return sorted((TrialRecord.from_row(row) for row in table.to_pylist()), key=lambda record: record.number)


def write_trials(store: Store, records: Sequence[TrialRecord]) -> None:
    """Put the whole table anew: one atomic put, so a reader sees it with or without a trial, never half."""
    ordered = sorted(records, key=lambda record: record.number)
    table = pa.Table.from_pylist([record.to_row() for record in ordered], schema=contracts.TRIALS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put(TRIALS, sink.getvalue().to_pybytes())


def begin_trial(store: Store, trial: StartedTrial) -> None:
    """Put what a trial is, once, before its first epoch ends."""
    store.create(f"trials/{trial.trial_id}/{_TRIAL}", json.dumps(asdict(trial)).encode())


def unfinished_trials(store: Store, records: Sequence[TrialRecord]) -> list[StartedTrial]:
    """Trials that began and are not among the finished ones, in the order of their numbers.

    Raises `InputError` where a trial.json cannot be understood.
    """
    ended = {record.trial_id for record in records}
    started = [key for key in _keys_of(store, _TRIAL) if key.split("/")[1] not in ended]
    return sorted((_read_started(store, key) for key in started), key=lambda trial: trial.number)


def remove_stale_checkpoints(store: Store, records: Sequence[TrialRecord]) -> None:
    """Remove the checkpoints of finished trials: a search that was killed or stopped may leave some."""
    ended = {record.trial_id for record in records}
    store.delete_all([key for key in _keys_of(store, _CHECKPOINT) if key.split("/")[1] in ended])


def _keys_of(store: Store, name: str) -> list[str]:
    return [info.key for chunk in store.list("trials") for info in chunk if info.key.endswith(f"/{name}")]


def without_probes(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The rows that are models."""
    return [record for record in records if PROBE not in record.parameters]


def next_number(records: Sequence[TrialRecord], unfinished: Sequence[StartedTrial]) -> int:
    """Of the trial that is suggested next."""
    return 1 + max([one.number for one in records] + [one.number for one in unfinished], default=-1)


def _read_started(store: Store, key: str) -> StartedTrial:
    try:
        return StartedTrial(**json.loads(store.get(key)))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{store.uri(key)} is not a trial of this version of rayscan: {error}; "
            "remove its folder to give that trial up"
        ) from error


def save_checkpoint(store: Store, trial_id: str, checkpoint: Checkpoint) -> None:
    """Put the whole state of a trial after an epoch."""
    store.put(f"trials/{trial_id}/{_CHECKPOINT}", checkpoint.to_bytes())


def load_checkpoint(store: Store, trial_id: str) -> Checkpoint | None:
    """The state of a trial after its last whole epoch; None before its first. Raises `InputError` where it is none."""
    key = f"trials/{trial_id}/{_CHECKPOINT}"
    try:
        data = store.get(key)
    except NotFoundError:
        return None
    try:
        return Checkpoint.from_bytes(data)
    except InputError as error:
        raise InputError(f"{store.uri(key)}: {error}: remove this file") from error


def remove_checkpoint(store: Store, trial_id: str) -> None:
    """A trial that has ended does not go on."""
    store.delete(f"trials/{trial_id}/{_CHECKPOINT}")


def weights_key(trial_id: str) -> str:
    """Key of a trial's weights within STUDY."""
    return f"trials/{trial_id}/weights.safetensors"


def save_weights(store: Store, trial_id: str, state: StateDict) -> None:
    """Put the weights of a trial's best epoch so far."""
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    store.put(weights_key(trial_id), safetensors.torch.save(contiguous))


def load_weights(store: Store, trial_id: str) -> StateDict:
    """The weights of a trial's best epoch. Raises `NotFoundError`."""
    weights: StateDict = safetensors.torch.load(store.get(weights_key(trial_id)))
    return weights


def save_logits(store: Store, trial_id: str, logits: npt.NDArray[np.float32]) -> None:
    """Put what a trial's best epoch so far says of the validation films: uncalibrated logits [N, C], in their order."""
    data = safetensors.torch.save({"logits": torch.from_numpy(logits).contiguous()})
    store.put(f"trials/{trial_id}/{LOGITS}", data)


def load_logits(store: Store, trial_id: str) -> npt.NDArray[np.float32]:
    """The validation logits [N, C] of a trial's best epoch. Raises `NotFoundError`."""
    logits: npt.NDArray[np.float32] = safetensors.torch.load(store.get(f"trials/{trial_id}/{LOGITS}"))["logits"].numpy()
    return logits


def leaderboard(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials with a result, the best value first; of equals, the faster model, then the earlier. Probes are no models.

    Where the latency is an objective, too, the first is on the Pareto front: the fastest of those that are as good.
    """
    ranked = [
        record
        for record in records
        if record.status != "failed" and record.value is not None and PROBE not in record.parameters
    ]
    return sorted(ranked, key=lambda record: (-(record.value or 0.0), record.latency_ms or 0.0, record.number))


def study_front(records: Sequence[TrialRecord], names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the trials that no other beats in all of several objectives; empty where there is only one."""
    objectives = parse_objectives(names)
    ranked = [record for record in leaderboard(records) if record.latency_ms is not None]
    if len(objectives) == 1:
        return ()
    points = [(record.value or 0.0, record.latency_ms or 0.0) for record in ranked]
    return tuple(ranked[place].number for place in pareto_front(points, objectives))


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The first of the leaderboard, if any."""
    return next(iter(leaderboard(records)), None)


def count_statuses(records: Sequence[TrialRecord]) -> dict[str, int]:
    """How many trials ended `complete`, `pruned`, `failed`; zero included."""
    counts = Counter(record.status for record in records)
    return {"complete": counts["complete"], "pruned": counts["pruned"], "failed": counts["failed"]}


def brief(error: BaseException | None) -> str:
    """One short line on why a trial failed, with `<path>` for every path or URI: file names may name patients.

    A quoted name ends with its quote, any other at the next `: ` or `; `. So a message that names a file puts a colon
    behind the name, or hides its own reason.
    """
    cause = getattr(error, "cause", None) or error
    if cause is None:
        return "the trial's process died"
    first = next(iter(str(cause).strip().splitlines()), "")[:1000]
    return f"{type(cause).__name__}: {_PATH.sub('<path>', first)}"[:200]
