"""The files in `cluster/examples/`, read as the verbs read them."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cluster.cli import app
from cluster.settings import seconds
from cluster.verbs.search import SearchOptions, search_settings
from pipelines.scoring.settings import ScoreSettings
from tuning.recipes.recipe import read_recipe
from tuning.spaces.space_file import read_space, space_for

EXAMPLES = Path(__file__).parents[2] / "cluster" / "examples"
TABLES = {name: tuple(tomllib.loads((EXAMPLES / f"{name}.toml").read_text())) for name in ("night", "search")}


def options(name: str, verb: str) -> dict[str, Any]:
    """What a verb gets from its table of a job file; a key it does not know is an error."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    parsed: dict[str, Any] = command.make_context(verb, ["--config", str(EXAMPLES / f"{name}.toml")]).params
    return parsed


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, verbs in TABLES.items() for verb in verbs])
def test_each_table_sets_all_that_its_verb_requires(name: str, verb: str) -> None:
    parsed = options(name, verb)
    table = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())[verb]
    assert [key for key in table if parsed[key.replace("-", "_")] is None] == []


def test_the_night_scores() -> None:
    parsed = options("night", "score")
    ScoreSettings(
        operating_point=parsed["operating_point"], wait=seconds(parsed["wait"]), thumbnails=parsed["thumbnails"]
    )
    assert {parsed["archive"], parsed["out"]} == {"s3://hospital/scans", "s3://hospital/scores"}
    assert options("night", "compact")["scores"] == options("night", "report")["subject"] == parsed["out"]


def test_the_search_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])  # as its first lines say
    parsed = options("search", "tune")
    settings = search_settings(SearchOptions(**{field.name: parsed[field.name] for field in fields(SearchOptions)}))
    assert (settings.time_budget_s, settings.finals, settings.confirm) == (3600, 2, 3)
    assert settings.space is not None
    assert read_space(settings.space).families == ("cnn", "mlp")
    assert options("search", "prepare")["out"] == parsed["dataset"] == options("search", "evaluate")["dataset"]
    assert options("search", "evaluate")["bundle"] == f"{parsed['out']}/best"


def test_the_space_can_be_searched() -> None:
    space = space_for(224, source=str(EXAMPLES / "space.toml"))
    assert space.families == ("cnn", "mlp")


def test_the_recipe_is_one() -> None:
    recipe = read_recipe(str(EXAMPLES / "recipe.toml"))
    assert [combination["width"] for combination in recipe.combinations()] == [16, 24]
    assert recipe.about
