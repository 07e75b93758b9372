"""The space of a search, checked before Ray starts; so this module does not import it."""

from models.spec import ModelSpec
from pipelines.ingest.dataset_info import DatasetInfo, read_dataset_info
from tuning.search.settings import SearchSettings
from tuning.spaces.space import SearchSpace, leaves
from tuning.spaces.space_file import DEFAULT, GRID, space_for
from tuning.training.start import seeded_network


def searched_space(dataset: str, settings: SearchSettings) -> SearchSpace:
    """The space of a search on the data set with these settings. Raises `InputError` where it cannot be searched."""
    info = read_dataset_info(dataset)
    space = space_of(settings, info)
    check_space(space, settings, info)
    return space


def space_of(settings: SearchSettings, info: DatasetInfo) -> SearchSpace:
    """The space that the settings name, for films of the data set's size. Raises `InputError` where there is none."""
    return space_for(
        info.size,
        source=settings.space or (GRID if settings.search == "grid" else DEFAULT),
        families=settings.families,
        resolutions=settings.resolutions,
        weights=settings.weights,
    )


def check_space(space: SearchSpace, settings: SearchSettings, info: DatasetInfo) -> None:
    """Raise `InputError` for a space that cannot be searched: now, before anything is written, not trial by trial."""
    if settings.search == "grid":
        leaves(space)  # refuses a space that is not discrete
    for family in space.families:
        for weights in space.weights_of(family):  # which must fit their backbone
            seeded_network(ModelSpec(name=family, preprocessing=info.preprocessing), weights, 0)
