"""What dataset.json says of a prepared data set.

A module of its own because it imports nothing heavy: `cluster/preflight.py` reports a data set that is missing or does
not fit the model before pyarrow, Ray or torch is loaded. `dataset.py` reads the films.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.spec import Preprocessing
from pipelines.errors import InputError, NotFoundError
from pipelines.storage import open_store

MANIFEST = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The contents of dataset.json."""

    size: int
    """Side of the square films in pixels."""
    preprocessing: Preprocessing
    fingerprint: str
    """Hash of scan ids (URI and etag of each file), labels, splits and preprocessing."""
    counts: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    parts: Mapping[str, tuple[str, ...]]
    """Split -> names of its parts, ordered so that their films are sorted by scan id."""


def read_dataset_info(uri: str) -> DatasetInfo:
    """Read dataset.json. Raises `InputError` when there is no data set."""
    store = open_store(uri)
    try:
        value: dict[str, Any] = json.loads(store.get(MANIFEST))
        return DatasetInfo(
            size=value["size"],
            preprocessing=Preprocessing(**value["preprocessing"]),
            fingerprint=value["fingerprint"],
            counts=value["counts"],
            parts={split: tuple(names) for split, names in value["parts"].items()},
        )
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{store.root}: no data set here; make one with `rayscan prepare`") from error


def check_fits(wanted: Preprocessing, info: DatasetInfo, dataset: str) -> None:
    """Raise `InputError` unless the films of the data set named `dataset` are what a model takes."""
    have = info.preprocessing
    if _films(wanted) != _films(have):
        raise InputError(
            f"{dataset}: holds films of {_in_words(have)}, the model takes {_in_words(wanted)};"
            f" prepare the data set again with {_options(wanted)}"
        )


def _films(of: Preprocessing) -> tuple[object, ...]:
    """What the pixels of a data set depend on."""
    return of.film_size, of.decode, of.fit, of.harmonise


def _in_words(of: Preprocessing) -> str:
    seen = f", {of.as_seen}" if of.as_seen else ""
    return f"{of.film_size} pixels decoded by {of.decode}{seen}"


def _options(of: Preprocessing) -> str:
    fit = "" if of.fit == "squash" else f" --fit {of.fit}"
    aspect = "" if of.harmonise is None else f" --harmonise --aspect {of.harmonise:g}"
    return f"--size {of.film_size} --decode {of.decode}{fit}{aspect}"


def require_split(info: DatasetInfo, split: str, dataset: str) -> None:
    """Raise `InputError` if the data set named `dataset` has no films in a split."""
    if not info.parts.get(split):
        have = ", ".join(name for name, films in info.counts.items() if films) or "none"
        raise InputError(f"{dataset}: no films in split {split!r}; it has {have}")
