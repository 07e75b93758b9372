"""Verbs that say which model is in force: list the models of a place, promote one, roll back."""

from typing import Annotated, Literal

import typer

from cluster import output, preflight
from cluster.locations import location
from cluster.options import Config, Json

Role = Literal["candidate", "shadow", "production"]
Scores = Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)]
By = Annotated[str, typer.Option(help="Who decided (RAYSCAN_USER, else user@host).")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]


def models(scores: Scores, config: Config = None, json: Json = False) -> None:
    """List the models of a place: which is in production, shadow and candidate, since when, by whom, and why."""
    preflight.check_models(scores)
    from cluster.answers import print_answer
    from pipelines.table.model_list import list_models

    print_answer(list_models(scores), "json" if json else "table")


def promote(
    scores: Scores,
    bundle: Annotated[str, typer.Argument(help="The model, as train or tune left it.", parser=location)],
    role: Annotated[Role, typer.Option("--as", help="What it is from now on.")],
    reason: Reason = "",
    by: By = "",
    name: Annotated[str, typer.Option(help="What people call the model (its recipe or network).")] = "",
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a model candidate, shadow or production, and record it. `score --model production` follows."""
    preflight.check_place(scores)
    import pipelines.table.registry

    entry = pipelines.table.registry.promote(scores, bundle, role, who=by, why=reason, name=name)
    output.show(entry, as_json=json)


def rollback(scores: Scores, reason: Reason = "", by: By = "", config: Config = None, json: Json = False) -> None:
    """Make the model before the one in production the one in production again, and record it."""
    import pipelines.table.registry

    output.show(pipelines.table.registry.rollback(scores, who=by, why=reason), as_json=json)
