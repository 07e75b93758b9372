"""Verbs about runs that are over: what became of one, and the removal of old ones."""

from datetime import timedelta
from typing import Annotated

import typer

from cluster import output, preflight
from cluster.locations import location
from cluster.options import Config, Json
from cluster.settings import seconds

Scores = Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)]


def explain(
    scores: Scores,
    run: Annotated[str | None, typer.Argument(help="Id of a run (the newest).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Say in ten lines what became of a run and what to do; needs no cluster, and writes nothing."""
    preflight.check_begun(scores)
    import pipelines.scoring.explain

    told = pipelines.scoring.explain.explain(scores, run)
    if json:
        output.show(told, as_json=True)
    else:
        output.write("\n".join(told.lines()))


def prune(
    scores: Scores,
    keep: Annotated[str, typer.Option(metavar="90d", help="Keep the runs that were finished within this time.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    wait: Annotated[str | None, typer.Option(help="Wait for a run that is under way there, e.g. 10m (0s).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Remove plans, records and reports of old runs; scores, unfinished runs and the newest of each model stay."""
    from pipelines.table.prune import check_keep

    kept, patience = timedelta(seconds=seconds(keep)), seconds(wait) if wait else 0.0
    check_keep(kept)
    preflight.check_runs(scores)
    import pipelines.table.prune

    output.show(pipelines.table.prune.prune(scores, kept, dry_run=dry_run, wait=patience), as_json=json)
