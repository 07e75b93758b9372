"""The films of a data set that a model learns from and is judged by: one value from the search down to a head."""

from dataclasses import dataclass

from models.films import Films
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info


@dataclass(frozen=True, kw_only=True)
class TrainingFilms:
    """The training and validation films of a prepared data set, perhaps relabelled, or some of them only."""

    uri: str
    """Of the data set."""
    info: DatasetInfo
    train: Films
    val: Films


def read_training_films(uri: str) -> TrainingFilms:
    """The films of the splits train and val. Raises what `pipelines.ingest.dataset.load_films` raises."""
    info = read_dataset_info(uri)
    return TrainingFilms(uri=uri, info=info, train=load_films(uri, "train"), val=load_films(uri, "val"))
