"""Verbs of the night: score an archive, keep the scores, ask them, show them."""

from typing import Annotated, Literal

import typer

from cluster import output, preflight
from cluster.locations import location, study_or_models
from cluster.options import Address, Config, Json, given
from cluster.settings import seconds
from models.engines.machine import Precision

Format = Literal["table", "csv", "json", "parquet"]
"""How `query` prints its answer."""


def score(
    archive: Annotated[
        str,
        typer.Argument(metavar="ARCHIVE|CATALOG", help="Scans to score, or a catalogue of them.", parser=location),
    ],
    model: Annotated[str, typer.Option(help="The bundle to score with.", parser=location)],
    out: Annotated[
        str, typer.Option(help="Where the scores go; one place for every night and model.", parser=location)
    ],
    shard_size: Annotated[int | None, typer.Option(help="Scans of one Parquet part (256).")] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="Locked threshold that decides `prediction` (the bundle's default).")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="fp32 is exact (default: the fastest engine the bundle allows).")
    ] = None,
    max_nights: Annotated[int | None, typer.Option(help="Give a scan up that failed in so many runs (5).")] = None,
    most_actors: Annotated[int | None, typer.Option(help="Let the cluster grow to so many scoring actors.")] = None,
    wait: Annotated[str | None, typer.Option(help="Wait for another run with this model, e.g. 10m (0s).")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html beside the run.")] = False,
    thumbnails: Annotated[
        int | None,
        typer.Option(help="Show so many films of the worklist in the report (0). They are patients' images."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: how many, how long, what cost.")] = False,
    price: Annotated[float | None, typer.Option(help="Price of a core-hour, for --dry-run.")] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Start Ray's dashboard here, too; it takes 3 s. A cluster has its own.")
    ] = False,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Score what this model has not scored yet, into Parquet. Run it again to resume, or every night."""
    import pipelines.scoring.settings

    settings = pipelines.scoring.settings.ScoreSettings(
        report=not no_report,
        **given(
            shard_size=shard_size,
            operating_point=operating_point,
            precision=precision,
            max_nights=max_nights,
            most_actors=most_actors,
            wait=seconds(wait) if wait else None,
            thumbnails=thumbnails,
        ),
    )
    preflight.check_ray(address)
    preflight.check_source(archive)
    (bundle,) = preflight.check_bundles([model])
    pipelines.scoring.settings.operating_point(bundle.calibration, operating_point)
    preflight.check_place(out)
    import pipelines.scoring.runs
    from cluster.session import ray_session

    if dry_run:
        plan = pipelines.scoring.runs.preview(archive, model, out, settings, price_per_core_hour=price)
        output.show(plan, as_json=json)
        return
    records = pipelines.scoring.runs.score(
        archive, model, out, settings, lambda: ray_session(address, dashboard=dashboard)
    )
    output.show(records if json else [record.in_short() for record in records], as_json=json)


def compact(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)],
    model: Annotated[str | None, typer.Option(help="Id of one model (all of them).")] = None,
    wait: Annotated[str | None, typer.Option(help="Wait for a run that is at work there, e.g. 10m (0s).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Merge the small parts of finished runs, per model and month; no row is ever shown twice or lost."""
    patience = seconds(wait) if wait else 0.0
    preflight.check_scores(scores, model)
    import pipelines.table.compact

    months = pipelines.table.compact.compact(scores, model=model, wait=patience)
    nothing = "nothing to compact: no month has several small parts of finished runs"
    output.show(months if months or json else nothing, as_json=json)


def query(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)],
    sql: Annotated[
        str | None, typer.Argument(help="A question to the views scores, latest, rejects, runs. Default: a summary.")
    ] = None,
    format: Annotated[Format, typer.Option(help="parquet writes bytes: redirect stdout to a file.")] = "table",  # noqa: A002
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Ask the scores in SQL."""
    preflight.check_runs(scores)
    from cluster.answers import print_answer
    from pipelines.table.query import ask

    print_answer(ask(scores, sql), "json" if json else format)


def report(
    subject: Annotated[str, typer.Argument(metavar="STUDY|BUNDLE|SCORES", help="What to show.", parser=location)],
    out: Annotated[str, typer.Option(metavar="R.html", help="The page.", parser=location)],
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY|A,B",
            help="Set another study beside a study; of scores, two models by their ids.",
            parser=study_or_models,
        ),
    ] = None,
    thumbnails: Annotated[
        int, typer.Option(help="Of scores: show so many films of the worklist, with maps. They are patients' images.")
    ] = 0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Draw a study, a model or the scores as one self-contained page."""
    preflight.check_report(subject, out, compare, thumbnails)
    from cluster.report import write_report

    output.show({"report": write_report(subject, out, compare=compare, thumbnails=thumbnails)}, as_json=json)
