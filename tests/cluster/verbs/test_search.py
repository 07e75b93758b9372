"""From the flags of `tune` to the settings of a search."""

from typing import Any

import pytest

from cluster.verbs.search import SearchOptions, search_settings
from pipelines.errors import InputError
from tuning.search.settings import SearchSettings


def test_without_flags_the_search_has_its_own_defaults() -> None:
    assert search_settings(SearchOptions()) == SearchSettings()


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"cpus_per_trial": 4}, {"cpus_per_trial": 4}),
        ({"gpus_per_trial": 0.25}, {"gpus_per_trial": 0.25}),
        ({"gpus_per_trial": 0.0}, {"gpus_per_trial": 0.0}),  # none, though the cluster has some
        ({"concurrent": 3, "workers": 2}, {"max_concurrent": 3, "workers_per_trial": 2}),
        ({"no_films": True, "resume": True}, {"show_films": False, "resume": True}),
        ({"search": "grid", "select": "robust"}, {"search": "grid", "select": "robust"}),
        ({"time_budget": "1h30m", "family": ["cnn"]}, {"time_budget_s": 5400.0, "families": ("cnn",)}),
        (
            {"resolution": [96], "objective": ["latency", "auc"]},
            {"resolutions": (96,), "objectives": ("latency", "auc")},
        ),
        (
            {"trials": 7, "patience": 11, "epochs": 3, "space": "grid", "weights": "imagenet", "seed": 5},
            {"trials": 7, "patience": 11, "epochs": 3, "space": "grid", "weights": "imagenet", "seed": 5},
        ),
        (
            {"probes": 4, "finals": 2, "confirm": 3, "warm_start": "s3://b/study"},
            {"probes": 4, "finals": 2, "confirm": 3, "warm_start": "s3://b/study"},
        ),
    ],
)
def test_a_flag_sets_its_field_and_no_other(flags: dict[str, Any], fields: dict[str, Any]) -> None:
    assert search_settings(SearchOptions(**flags)) == SearchSettings(**fields)


@pytest.mark.parametrize("epochs", [None, 1, 20])
def test_without_pruning_the_grace_lasts_as_long_as_a_trial(epochs: int | None) -> None:
    settings = search_settings(SearchOptions(no_pruning=True, epochs=epochs))
    assert settings.epochs == (epochs or SearchSettings().epochs)
    assert settings.grace_epochs == settings.epochs
    assert search_settings(SearchOptions(epochs=epochs)).grace_epochs == SearchSettings().grace_epochs


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="gpus_per_trial is -1"):
        search_settings(SearchOptions(gpus_per_trial=-1))
