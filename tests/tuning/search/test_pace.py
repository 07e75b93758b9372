"""How many cores a trial gets where nobody says: so many that a time budget holds whole trainings."""

from dataclasses import replace

import pytest
import ray

from models.spec import ModelSpec
from pipelines.capacity import Capacity, NodeType
from tests.tuning.films import SIZE, write_dataset
from tuning.search import pace
from tuning.search.pace import cores_for, cores_per_trial, schedule_seconds
from tuning.search.settings import SearchSettings
from tuning.spaces.space import TrialPlan
from tuning.spaces.space_file import space_for
from tuning.training.films import TrainingFilms, read_training_films
from tuning.training.settings import TrainSettings

FOUR = Capacity(nodes=(NodeType(cpus=4, count=3),))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TrainingFilms:
    folder = str(tmp_path_factory.mktemp("pace") / "dataset")
    write_dataset(folder)
    return read_training_films(folder)


@pytest.mark.parametrize(
    ("seconds", "budget", "most", "cores"),
    [(60, 1800, 16, 1), (900, 1800, 16, 1), (901, 1800, 16, 2), (3600, 1800, 16, 4), (3600, 60, 16, 16), (0, 60, 4, 1)],
)
def test_the_fewest_cores_with_which_two_trainings_end_in_time(
    seconds: float, budget: float, most: int, cores: int
) -> None:
    assert cores_for(seconds, budget, most) == cores


@pytest.mark.usefixtures("ray_session")
def test_a_search_without_time_gives_a_trial_the_largest_node_and_one_with_time_a_core(films: TrainingFilms) -> None:
    space = space_for(SIZE, families=("cnn",))
    hasty, patient = SearchSettings(time_budget_s=0.01), SearchSettings(time_budget_s=1e6)
    assert cores_per_trial(hasty, space, films, FOUR) == 4
    assert cores_per_trial(patient, space, films, FOUR) == 1


@pytest.mark.usefixtures("ray_session")
def test_where_no_core_is_free_the_search_does_not_wait_for_one_to_time_on(
    films: TrainingFilms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @ray.remote(num_cpus=4)
    class Night:
        """Holds all cores there are."""

        def works(self) -> bool:
            return True

    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.5)
    night = Night.remote()
    assert ray.get(night.works.remote())
    with caplog.at_level("INFO", logger="rayscan"):
        cores = cores_per_trial(SearchSettings(time_budget_s=0.01), space_for(SIZE, families=("cnn",)), films, FOUR)
    ray.kill(night)
    assert cores == 1
    assert "no core was free" in caplog.text


@pytest.mark.parametrize(
    ("settings", "capacity", "cores"),
    [
        (SearchSettings(time_budget_s=0.01, cpus_per_trial=3), FOUR, 3),
        (SearchSettings(), FOUR, 1),
        (SearchSettings(time_budget_s=0.01, workers_per_trial=2), FOUR, 1),
        (SearchSettings(time_budget_s=0.01), Capacity(nodes=(NodeType(cpus=16, gpus=1),)), 1),
        (SearchSettings(time_budget_s=0.01), Capacity(nodes=(NodeType(cpus=1, count=9),)), 1),
    ],
)
def test_nothing_is_timed_where_it_decides_nothing(
    settings: SearchSettings, capacity: Capacity, cores: int, films: TrainingFilms
) -> None:
    """No Ray runs here, so to time would fail."""
    assert cores_per_trial(settings, space_for(SIZE, families=("cnn",)), films, capacity) == cores


def test_a_plan_that_cannot_be_trained_takes_no_time_and_any_other_takes_some(films: TrainingFilms) -> None:
    plan = TrialPlan(
        spec=ModelSpec(name="cnn", preprocessing=films.info.preprocessing), training=TrainSettings(epochs=3, threads=1)
    )
    assert schedule_seconds(plan, films) > 0
    assert schedule_seconds(replace(plan, spec=replace(plan.spec, classes=("NORMAL", "BACTERIA", "VIRUS"))), films) == 0
