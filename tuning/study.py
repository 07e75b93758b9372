"""A study on storage: what was searched, every trial, the weights of each, and the promoted winner.

    STUDY/study.json                         dataset, fingerprint, space, settings: put first, create-only
    STUDY/trials.parquet                     contracts.TRIALS, put anew as each trial ends
    STUDY/trials/<trial_id>/trial.json       what the trial is: put as it starts, create-only
    STUDY/trials/<trial_id>/weights.safetensors      its best epoch, put by the trial whenever it improves
    STUDY/trials/<trial_id>/checkpoint.safetensors   its whole state, put after each epoch, removed when it has ended
    STUDY/best/                              the bundle of the winner

A trial that has a trial.json and no row in the table was under way when its search was killed, and is taken up again.

All of it is JSON, Parquet and safetensors: taking a study up again unpickles nothing, unlike Ray Tune's own experiment
state, which is therefore thrown away.
"""

import json
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

from models.bundle import Bundle
from models.calibration import Calibration
from models.classifier import ScanClassifier
from models.errors import BundleError, InputError, RayscanError
from models.films import Films
from models.preprocess import Preprocess
from models.spec import ModelSpec, Scalar
from models.zoo import build
from pipelines import contracts
from pipelines.bundles import fetch_bundle
from pipelines.errors import IncompleteError, NotFoundError
from pipelines.ingest.dataset import DatasetInfo
from pipelines.storage import Store
from tuning.checkpoint import Checkpoint
from tuning.loop import EVALUATION_BATCH, EpochReport, Fitted, StateDict, TrainSettings
from tuning.promote import promote
from tuning.selection import TOP, Score, Select, most_robust
from tuning.space import to_spec_and_settings

TrialStatus = Literal["complete", "pruned", "failed"]

STUDY = "study.json"
TRIALS = "trials.parquet"
BEST = "best"
_TRIAL = "trial.json"
_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """What a study is of. All its trials share it, so their AUCs may be compared."""

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
        """Of a trial that is not stopped."""
        return int(self.settings["epochs"])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


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
    """The best over its epochs on the validation films: the maximum of noisy values, so a little too high, and the
    more so the more epochs a trial had. None where no epoch ended."""
    epochs: int
    history: list[dict[str, Any]]
    """`EpochReport` of each epoch."""
    seconds: float
    seed: int
    """Of the training: initial weights, order of the films, augmentation."""
    error: str | None = None
    finished_at: datetime

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
    bundle: str
    model_id: str
    seconds: float

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
    message = f"{store.root} is not empty; add --resume to go on with that study, or give another --out"
    if not _is_empty(store):
        raise InputError(message)
    # create-only: of two searches started together on one STUDY, one is told so
    if not store.create(STUDY, json.dumps(info.to_json(), indent=2).encode()):
        raise InputError(message)
    return []


def _is_empty(store: Store) -> bool:
    try:
        return not any(store.list())
    except NotFoundError:  # a local folder that is not there yet
        return True


def _check_same(store: Store, old: StudyInfo, new: StudyInfo) -> None:
    if old.fingerprint != new.fingerprint:
        raise InputError(
            f"{store.root} is a study of the dataset {old.dataset} (fingerprint {old.fingerprint}), "
            f"but {new.dataset} has {new.fingerprint}; resume with the study's own dataset, or give another --out"
        )
    for name, before, now in (("search space", old.space, new.space), ("epochs", old.epochs, new.epochs)):
        if before != now:
            raise InputError(
                f"{store.root} was begun with {name} {json.dumps(before)}, not {json.dumps(now)}; "
                "resume it with the same, or give another --out"
            )


def read_study(store: Store) -> StudyInfo:
    """What the study is of. Raises `NotFoundError` where there is none, `InputError` where it cannot be understood."""
    try:
        return StudyInfo(**json.loads(store.get(STUDY)))
    except NotFoundError as error:
        raise NotFoundError(f"{store.uri(STUDY)} does not exist: there is no study there") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.uri(STUDY)} is not a study of this version of rayscan: {error}") from error


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

    Checkpoints of finished ones, which a killed search may have left, are removed. Raises `InputError` where a
    trial.json cannot be understood.
    """
    ended = {record.trial_id for record in records}
    keys = [info.key for chunk in store.list("trials") for info in chunk]
    store.delete_all([key for key in keys if key.endswith(f"/{_CHECKPOINT}") and key.split("/")[1] in ended])
    started = [key for key in keys if key.endswith(f"/{_TRIAL}") and key.split("/")[1] not in ended]
    return sorted((_read_started(store, key) for key in started), key=lambda trial: trial.number)


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


def leaderboard(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials with a result, best AUC first; of equals, the earlier."""
    ranked = [record for record in records if record.status != "failed" and record.auc is not None]
    return sorted(ranked, key=lambda record: (-(record.auc or 0.0), record.number))


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The first of the leaderboard, if any."""
    return next(iter(leaderboard(records)), None)


def count_statuses(records: Sequence[TrialRecord]) -> dict[str, int]:
    """How many trials ended `complete`, `pruned`, `failed`; zero included."""
    counts = Counter(record.status for record in records)
    return {"complete": counts["complete"], "pruned": counts["pruned"], "failed": counts["failed"]}


def promote_best(
    store: Store,
    records: Sequence[TrialRecord],
    study: StudyInfo,
    *,
    dataset: DatasetInfo,
    train: Films,
    val: Films,
    select: Select = "auc",
) -> tuple[TrialRecord, Bundle]:
    """Make the bundle of the best trial at STUDY/best, from the weights its best epoch left.

    `select` "robust" takes, of the few best, the one that does best on changed films; see `tuning/selection.py`.

    Its figures are computed anew from those weights, not taken from the table. Where that trial is the bundle already,
    it stays as it is: another model_id would have every archive scored again.

    Raises `RayscanError` where every trial failed, `IncompleteError` where none came as far as its first epoch.
    """
    ranked = leaderboard(records)
    if not ranked:
        raise _no_result(store, records)
    record = ranked[0]
    lineage: dict[str, Any] = {}
    if select == "robust":
        place, told = most_robust([_scorer(store, one, study, dataset) for one in ranked[:TOP]], val)
        record = ranked[place]
        lineage["selection"] = [{"trial": one.number, **of} for one, of in zip(ranked, told, strict=False)]
    if (standing := _standing(store)) is not None and standing.lineage.get("trial_id") == record.trial_id:
        return record, standing
    spec, settings = _spec_and_settings(record, study, dataset)
    weights = load_weights(store, record.trial_id)
    history = tuple(EpochReport(**epoch) for epoch in record.history)
    fitted = Fitted(
        spec=spec,
        settings=settings,
        state_dict=weights,
        val_logits=_logits(spec, weights, val.pixels),
        history=history,
        best=max(history, key=lambda report: (report.val_auc, -report.val_loss)),
        seconds=record.seconds,
    )
    lineage |= {"study": store.root, "trial_id": record.trial_id, "trial": record.number, "dataset": study.dataset}
    bundle = promote(fitted, train, val, dataset_info=dataset, out=store.uri(BEST), lineage=lineage)
    return record, bundle


def _spec_and_settings(record: TrialRecord, study: StudyInfo, dataset: DatasetInfo) -> tuple[ModelSpec, TrainSettings]:
    return to_spec_and_settings(
        record.parameters,
        preprocessing=dataset.preprocessing,
        epochs=study.epochs,
        seed=record.seed,
        threads=study.settings["cpus_per_trial"],
    )


def _scorer(store: Store, record: TrialRecord, study: StudyInfo, dataset: DatasetInfo) -> Score:
    spec, _ = _spec_and_settings(record, study, dataset)
    weights = load_weights(store, record.trial_id)
    plain = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    return lambda pixels: 1 - plain.probabilities(_logits(spec, weights, pixels))[:, 0]


def _no_result(store: Store, records: Sequence[TrialRecord]) -> RayscanError:
    errors = "; ".join(dict.fromkeys(record.error for record in records if record.error))
    if errors:
        return RayscanError(f"every trial of {store.root} failed: {errors}")
    return IncompleteError(f"{store.root}: the search ended before any trial had a result; go on with --resume")


def _standing(store: Store) -> Bundle | None:
    """The bundle at STUDY/best; None where there is none, or only part of one."""
    try:
        return fetch_bundle(store.uri(BEST))
    except BundleError:
        return None


@torch.inference_mode()
def _logits(spec: ModelSpec, weights: StateDict, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Uncalibrated logits [N, C] in float32 on the CPU, as the engine computes them."""
    network = build(spec)
    network.load_state_dict(weights)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network).eval()
    classifier.to(memory_format=torch.channels_last)
    starts = range(0, len(pixels), EVALUATION_BATCH)
    parts = [classifier.logits(torch.tensor(pixels[start : start + EVALUATION_BATCH])) for start in starts]
    logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return logits
