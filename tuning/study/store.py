"""A study on storage: what was searched, and the table of its trials.

    STUDY/study.json                         dataset, fingerprint, space, settings: put first, create-only
    STUDY/trials.parquet                     contracts.TRIALS, put anew as each trial ends
    STUDY/trials/<trial_id>/trial.json       what the trial is: put as it starts, create-only
    STUDY/trials/<trial_id>/weights.safetensors      its best epoch, put by the trial whenever it improves
    STUDY/trials/<trial_id>/checkpoint.safetensors   its whole state, put after each epoch, removed when it has ended
    STUDY/trials/<trial_id>/val_logits.safetensors   its logits of the validation films, and of their copies
    STUDY/findings.json                      what came of it, put when the search ends: `tuning/study/findings.py`
    STUDY/recipes/<number>.toml              how its best trials are made, for `train` and `crossvalidate --recipe`
    STUDY/best/                              the bundle of the winner

A trial that has a trial.json and no row in the table was under way when its search was killed; a resumed search
continues it.

All of it is JSON, Parquet and safetensors: resuming a study unpickles nothing, unlike Ray Tune's own experiment state,
which is therefore thrown away.

Importing this module loads neither torch nor pyarrow, so that a command can refuse a study at once
(`cluster/preflight.py`). Weights, logits and checkpoints are in `tuning/study/trial_files.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from models.errors import InputError
from pipelines.errors import NotFoundError
from pipelines.storage import Store
from tuning.study.records import StartedTrial, StudyInfo, TrialRecord

STUDY: Final = "study.json"
TRIALS: Final = "trials.parquet"
BEST: Final = "best"
FINDINGS: Final = "findings.json"
RECIPES: Final = "recipes"
CHECKPOINT: Final = "checkpoint.safetensors"
_TRIAL: Final = "trial.json"


def begin_study(store: Store, info: StudyInfo, *, resume: bool) -> list[TrialRecord]:
    """Make STUDY, or with `resume` continue it; return the trials it has.

    Raises `InputError` where STUDY holds anything and `resume` is off, where there is nothing to resume, and where the
    study is of other films, another space, other objectives or another number of epochs.
    """
    if resume:
        _check_same(store, read_study(store), info)
        return read_trials(store)
    require_free(store)
    # create-only: of two searches started together on one STUDY, one is refused
    if not store.create(STUDY, json.dumps(info.to_json(), indent=2).encode()):
        raise _in_use(store)
    return []


def _check_same(store: Store, old: StudyInfo, new: StudyInfo) -> None:
    from tuning.spaces.space_file import differences  # noqa: PLC0415 (torch)

    check_goes_on(store, old, dataset=new.dataset, fingerprint=new.fingerprint, settings=new.settings)
    if old.space != new.space:
        raise InputError(
            f"{store.root} was begun with another search space ({differences(old.space, new.space)}); "
            "resume it with the same, or give another --out"
        )


def read_study(store: Store) -> StudyInfo:
    """The study's `study.json`. Raises `NotFoundError` where there is none, `InputError` where it is not understood."""
    try:
        return StudyInfo(**json.loads(store.get(STUDY)))
    except NotFoundError as error:
        raise NotFoundError(f"{store.uri(STUDY)} does not exist: there is no study there") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.uri(STUDY)} is not a study of this version of rayscan: {error}") from error


def require_free(store: Store) -> None:
    """Raise `InputError` unless the place is empty, so that a new study can begin."""
    if not _is_empty(store):
        raise _in_use(store)


def _in_use(store: Store) -> InputError:
    """The error where a study was to begin and something is there."""
    return InputError(f"{store.root} is not empty; add --resume to go on with that study, or give another --out")


def check_goes_on(store: Store, old: StudyInfo, *, dataset: str, fingerprint: str, settings: Mapping[str, Any]) -> None:
    """Raise `InputError` unless films, epochs and objectives are those the study was begun with."""
    if old.fingerprint != fingerprint:
        raise InputError(
            f"{store.root} is a study of the dataset {old.dataset} (fingerprint {old.fingerprint}), "
            f"but {dataset} has {fingerprint}; resume with the study's own dataset, or give another --out"
        )
    new = StudyInfo(dataset=dataset, fingerprint=fingerprint, space={}, settings=dict(settings))
    for name, before, now in (
        ("epochs", old.epochs, new.epochs),
        ("objectives", old.objectives, new.objectives),
        ("a latency limit of", old.latency_limit, new.latency_limit),
    ):
        if before != now:
            raise InputError(
                f"{store.root} was begun with {name} {_told(before)}, not {_told(now)}; "
                "resume it with the same, or give another --out"
            )


def _told(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _is_empty(store: Store) -> bool:
    try:
        return not any(store.list())
    except NotFoundError:  # a local folder that does not exist yet
        return True


def read_trials(store: Store) -> list[TrialRecord]:
    """Every finished trial, in the order of their numbers; empty where none has finished yet.

    Raises `InputError` where the table cannot be understood.
    """
    import pyarrow as pa  # noqa: PLC0415 (slow)
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        rows = pq.read_table(pa.BufferReader(store.get(TRIALS))).to_pylist()
        records = [TrialRecord.from_row(row) for row in rows]
    except NotFoundError:
        return []
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{store.uri(TRIALS)} is not a table of trials of this version of rayscan: {error}") from error
    return sorted(records, key=lambda record: record.number)


def write_trials(store: Store, records: Sequence[TrialRecord]) -> None:
    """Replace the whole table in one atomic put: a reader sees it with or without a trial, never half."""
    import pyarrow as pa  # noqa: PLC0415 (slow)
    import pyarrow.parquet as pq  # noqa: PLC0415

    from pipelines import contracts  # noqa: PLC0415 (pyarrow)

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


def _read_started(store: Store, key: str) -> StartedTrial:
    try:
        return StartedTrial.from_json(json.loads(store.get(key)))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{store.uri(key)} is not a trial of this version of rayscan: {error}; "
            "remove its folder to give up that trial"
        ) from error


def remove_stale_checkpoints(store: Store, records: Sequence[TrialRecord]) -> None:
    """Remove the checkpoints of finished trials: a search that was killed or stopped may leave some."""
    ended = {record.trial_id for record in records}
    store.delete_all([key for key in _keys_of(store, CHECKPOINT) if key.split("/")[1] in ended])


def has_checkpoint(store: Store, trial_id: str) -> bool:
    """Whether the state of a trial after an epoch is there."""
    return store.exists(f"trials/{trial_id}/{CHECKPOINT}")


def remove_checkpoint(store: Store, trial_id: str) -> None:
    """Remove the checkpoint of a trial that has ended."""
    store.delete(f"trials/{trial_id}/{CHECKPOINT}")


def _keys_of(store: Store, name: str) -> list[str]:
    return [info.key for chunk in store.list("trials") for info in chunk if info.key.endswith(f"/{name}")]
