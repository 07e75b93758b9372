"""What a study is of, and whether a search may use its folder. Imports nothing heavy: that is told at once."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from models.errors import InputError
from pipelines.errors import NotFoundError
from pipelines.storage import Store
from tuning.training.objectives import AUC, parse_objectives

STUDY: Final = "study.json"


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

    @property
    def objectives(self) -> list[str]:
        """What the search is for, what the trials are ranked by first."""
        return [one.name for one in parse_objectives(self.settings.get("objectives", [AUC]))]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def read_study(store: Store) -> StudyInfo:
    """What the study is of. Raises `NotFoundError` where there is none, `InputError` where it cannot be understood."""
    try:
        return StudyInfo(**json.loads(store.get(STUDY)))
    except NotFoundError as error:
        raise NotFoundError(f"{store.uri(STUDY)} does not exist: there is no study there") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.uri(STUDY)} is not a study of this version of rayscan: {error}") from error


def require_free(store: Store) -> None:
    """Raise `InputError` where anything lies already, so that no new study can begin."""
    if not _is_empty(store):
        raise in_use(store)


def in_use(store: Store) -> InputError:
    """Something lies where a study was to begin."""
    return InputError(f"{store.root} is not empty; add --resume to go on with that study, or give another --out")


def check_goes_on(store: Store, old: StudyInfo, *, dataset: str, fingerprint: str, settings: Mapping[str, Any]) -> None:
    """Raise `InputError` where a study cannot go on with other films, or another search than the one that began it."""
    if old.fingerprint != fingerprint:
        raise InputError(
            f"{store.root} is a study of the dataset {old.dataset} (fingerprint {old.fingerprint}), "
            f"but {dataset} has {fingerprint}; resume with the study's own dataset, or give another --out"
        )
    new = StudyInfo(dataset=dataset, fingerprint=fingerprint, space={}, settings=dict(settings))
    for name, before, now in (("epochs", old.epochs, new.epochs), ("objectives", old.objectives, new.objectives)):
        if before != now:
            raise InputError(
                f"{store.root} was begun with {name} {json.dumps(before)}, not {json.dumps(now)}; "
                "resume it with the same, or give another --out"
            )


def _is_empty(store: Store) -> bool:
    try:
        return not any(store.list())
    except NotFoundError:  # a local folder that is not there yet
        return True
