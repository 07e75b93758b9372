"""What a search works with, in all of its rounds: its films, its study, its space, and what its trials run on."""

from dataclasses import dataclass

from pipelines.storage import Store, open_store
from tuning.search.mirror import Mirror
from tuning.search.room import Room
from tuning.search.settings import SearchSettings
from tuning.spaces.space import SearchSpace
from tuning.training.films import TrainingFilms, read_training_films


@dataclass(frozen=True, kw_only=True)
class SearchSetup:
    """What stays the same from the search's first trial to its last."""

    store: Store
    """The study."""
    films: TrainingFilms
    settings: SearchSettings
    space: SearchSpace
    room: Room
    mirror: Mirror | None = None


def read_films(uri: str) -> TrainingFilms:
    """The train and val films of the dataset at a URI or path. Raises `InputError` where there is none."""
    return read_training_films(open_store(uri).root)  # which workers, that run in another folder, can read
