"""A copy of a study in an Optuna storage, for people who look at it with optuna-dashboard.

It is written and never read by the search: the study of record is `STUDY/trials.parquet`, and the sampler keeps a study
of its own in memory. A search directly on the storage was refused: it would be as slow as the storage, would end with
it, and a database that several people may change would steer it.

A storage may hang or disappear while the search runs. So what the mirror lacks is determined anew each time by the
trials' ids: a failure costs one warning, and the missing trials are added with the next one that ends.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, quote_plus

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from models.errors import InputError
from tuning.search.frozen_trial import frozen_trial
from tuning.search.mirror_place import FORMS, check_storage, is_journal, no_database, no_url
from tuning.spaces.space import SearchSpace
from tuning.study.records import TrialRecord
from tuning.training.objectives import Objective, latency_limit, parse_objectives

log = logging.getLogger("rayscan")

_PACKAGES: Final = {"psycopg": "psycopg[binary]", "mysqldb": "mysqlclient"}
"""The package of a driver, where it has another name."""
_LIMITS: Final[Mapping[str, Mapping[str, Any]]] = {
    "psycopg": {"connect_timeout": 5, "tcp_user_timeout": 10_000},
    "psycopg2": {"connect_timeout": 5, "tcp_user_timeout": 10_000},
    "mysqldb": {"connect_timeout": 5, "read_timeout": 10, "write_timeout": 10},
    "pymysql": {"connect_timeout": 5, "read_timeout": 10, "write_timeout": 10},
}
"""Seconds (`tcp_user_timeout`: ms) that a driver waits: the process that runs the search writes the mirror, and a
server that does not answer would hold it up."""
_FAILURES: Final = (OptunaError, SQLAlchemyError, OSError, LookupError, RuntimeError, TypeError, ValueError)
"""Raised by a storage that cannot be reached, was changed by somebody else (a study was deleted: KeyError), is of
another version of Optuna (RuntimeError) or is not a storage at all (a journal: KeyError, TypeError, ValueError)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a mirror is, without credentials."""

    name: str
    secrets: tuple[str, ...] = ()
    """Users and passwords of the URL, the longest first."""

    def reason(self, error: BaseException) -> str:
        """One line on the root cause. Drivers quote the user in it, and may quote more."""
        while error.__cause__ is not None:
            error = error.__cause__
        line = next(iter(str(error).strip().splitlines()), "")[:300]
        for secret in self.secrets:
            line = line.replace(secret, "***")
        return f"{type(error).__name__}: {line}"


class Mirror:
    """One study in an Optuna storage, made there if it is new.

    `storage` is a journal file or a database's URL, `objectives` and `space` are the search's. Raises `InputError`
    where it is not a storage, its driver is not installed, it cannot be reached or written to, or has a study of this
    name with other objectives; the message shows neither user nor password.
    """

    def __init__(self, storage: str, study_name: str, objectives: Sequence[str], space: SearchSpace) -> None:
        self.objectives, self.most_ms = parse_objectives(objectives), latency_limit(objectives)
        self.space = space
        self.known: set[str] | None = None  # ids of the trials in the mirror; None: to be read
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.place, opened = _open_journal(storage) if is_journal(storage) else _open_database(storage)
        self.storage = opened
        try:
            self.study = _study(opened, study_name, self.objectives)
        except _FAILURES as error:
            raise _unusable(self.place, error) from None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its callbacks into a file, where no connection and no password belong."""
        return {}

    def add_missing(self, records: Sequence[TrialRecord]) -> None:
        """Add the finished trials that the mirror lacks, in the order of their numbers.

        A failing storage raises nothing: it is one warning, and the next call with these records tries again.
        """
        try:
            if self.known is None:
                self.known = {str(trial.user_attrs.get("trial_id")) for trial in self.study.get_trials(deepcopy=False)}
            missing = [record for record in records if record.trial_id not in self.known]
            for record in sorted(missing, key=lambda record: record.number):
                self.study.add_trial(to_optuna(record, self.space, self.objectives, self.most_ms))
                self.known.add(record.trial_id)
        except _FAILURES as error:
            left = len(records) if self.known is None else sum(record.trial_id not in self.known for record in records)
            self.known = None  # a trial may have gone in although its answer was lost
            log.warning(
                "%s was not written to (%s) and may lack up to %d of %d trials. The study itself has them; they are"
                " added with the next trial that ends, at the end of the search, or by --resume",
                *(self.place.name, self.place.reason(error), left, len(records)),
            )

    def close(self) -> None:
        """Let go of the database's connections."""
        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()


def to_optuna(
    record: TrialRecord, space: SearchSpace, objectives: Sequence[Objective], most_ms: float | None = None
) -> FrozenTrial:
    """A finished trial as Optuna keeps one; `most_ms` is the limit of the latency, a constraint.

    With several objectives Optuna knows neither intermediate values nor pruning, so a trial that was stopped early is
    COMPLETE there; and one that lacks a value, such as a probe, whose latency is not measured, can only be FAIL. The
    user attribute `status` says what it was.

    Parameters of baselines, probes and finals are in the user attribute `parameters`, as they need not lie in the
    space. The trial's start is its end less the seconds it took.
    """
    attributes = {
        name: getattr(record, name) for name in ("trial_id", "number", "kind", "status", "model", "epochs", "seconds")
    }
    suggested = record.kind == "search"
    if not suggested:
        attributes["parameters"] = record.parameters
    trial = frozen_trial(
        record,
        space if suggested else None,
        len(objectives),
        most_ms=most_ms,
        user_attrs=attributes,
    )
    trial.datetime_complete = _local(record.finished_at)
    trial.datetime_start = _local(record.started_at)
    return trial


def _local(when: datetime) -> datetime:
    """As Optuna keeps times: in the time zone of the machine, without naming it."""
    return when.astimezone().replace(tzinfo=None)


def _study(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    wanted = [objective.direction for objective in objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=wanted, load_if_exists=True)
    there = [direction.name.lower() for direction in study.directions]
    if there != wanted:
        raise InputError(
            f"the Optuna storage has a study {name!r} with the directions {', '.join(there)}, but this search has"
            f" {', '.join(wanted)}; delete that study there, or give another --optuna-storage"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if study.metric_names is None:
            study.set_metric_names([objective.name for objective in objectives])
    return study


def _open_journal(path: str) -> tuple[Place, BaseStorage]:
    place = Place(name=f"the Optuna journal {path}")
    try:
        return place, JournalStorage(JournalFileBackend(path))
    except OSError as error:
        raise _unusable(place, error) from None
    except _FAILURES:
        raise InputError(f"{path} is no Optuna journal, or a broken one; give another file, or remove it") from None


def _open_database(storage: str) -> tuple[Place, RDBStorage]:
    """Raises `InputError`, which quotes nothing of a text that cannot be parsed: it may hold a password anywhere."""
    check_storage(storage)
    try:
        url = make_url(storage)
    except (SQLAlchemyError, ValueError):
        raise no_url() from None
    backend, _, driver = url.drivername.partition("+")
    if backend == "sqlite" and url.database in {None, "", ":memory:"}:
        raise no_database(backend)
    if backend == "postgresql" and not driver:
        url = url.set(drivername="postgresql+psycopg")  # the default differs from one SQLAlchemy to the next
    place = _place(url)
    try:
        driver = url.get_dialect().driver
    except NoSuchModuleError:
        raise InputError(f"{url.drivername}:// names a driver that SQLAlchemy does not know; {FORMS}") from None
    limits = {name: value for name, value in _LIMITS.get(driver, {}).items() if name not in url.query}
    filled = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    try:
        return place, RDBStorage(filled, engine_kwargs={"connect_args": limits, "pool_pre_ping": True})
    except ImportError:
        package = _PACKAGES.get(driver, driver)
        raise InputError(f"{place.name} needs the package {driver}; pip install '{package}'") from None
    except _FAILURES as error:
        raise _unusable(place, error) from None


def _place(url: URL) -> Place:
    shown = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return Place(
        name=f"the Optuna storage {shown.render_as_string()}",
        secrets=tuple(sorted(set(_secrets(url)), key=len, reverse=True)),
    )


def _secrets(url: URL) -> Iterator[str]:
    """User and password, wherever they are in the URL, plain and percent-encoded."""
    named = [values for name, values in url.query.items() if "user" in name or "pass" in name]
    flat = [value for values in named for value in ([values] if isinstance(values, str) else values)]
    for secret in (url.username, url.password, *flat):
        if secret:
            yield from (str(secret), quote(str(secret), safe=""), quote_plus(str(secret)))


def _unusable(place: Place, error: BaseException) -> InputError:
    """To be raised `from None`: a traceback of the driver's own error would show what this line hides."""
    return InputError(f"{place.name} cannot be used: {place.reason(error)}; mend it, or leave out --optuna-storage")
