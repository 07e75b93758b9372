"""What a search works with, in all of its rounds: its films, its study, its space, and what its trials run on."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.films import Films
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from pipelines.storage import Store, open_store
from tuning.search.mirror import Mirror
from tuning.search.settings import SearchSettings
from tuning.spaces.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class SearchFilms:
    """The films a search trains on and judges by."""

    uri: str
    """Of the dataset; workers, which run in another folder, can read it."""
    info: DatasetInfo
    train: Films
    val: Films


@dataclass(frozen=True, kw_only=True)
class SearchSetup:
    """What stays the same from the search's first trial to its last."""

    store: Store
    """The study."""
    films: SearchFilms
    settings: SearchSettings
    space: SearchSpace
    resources: Mapping[str, float]
    """Of each worker of a trial, as in `{"CPU": 1.0, "GPU": 0.5}`."""
    concurrent: int
    """Trials at a time."""
    mirror: Mirror | None = None


def read_films(uri: str) -> SearchFilms:
    """The train and val films of the dataset at a URI or path. Raises `InputError` where there is none."""
    uri = open_store(uri).root
    info = read_dataset_info(uri)
    return SearchFilms(uri=uri, info=info, train=load_films(uri, "train"), val=load_films(uri, "val"))
