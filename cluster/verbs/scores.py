"""Verbs of nightly scoring: score an archive, compact the scores, query them, report on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster import output, preflight
from cluster.locations import location, model_location, study_or_models
from cluster.options import (
    Address,
    Config,
    Dashboard,
    Exclude,
    Include,
    Json,
    MaxActors,
    Memory,
    MinActors,
    Since,
    actor_limits,
    given,
)
from cluster.settings import seconds, size
from models.engines.machine import Precision
from models.errors import InputError
from pipelines.errors import IncompleteError

if TYPE_CHECKING:
    from pipelines.scoring.settings import ScoreSettings

Format = Literal["table", "csv", "json", "parquet"]
"""How `query` prints its answer."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How to score; None takes the default of `ScoreSettings`."""

    shard_size: Annotated[int | None, typer.Option(help="Scans per Parquet part (64 to 8192, with the plan).")] = None
    operating_point: Annotated[
        str | None, typer.Option(help="Locked threshold that decides `prediction` (the bundle's default).")
    ] = None
    precision: Annotated[
        Precision | None, typer.Option(help="fp32 is exact (default: the fastest engine the bundle allows).")
    ] = None
    max_nights: Annotated[int | None, typer.Option(help="Give up on a scan that failed in this many runs (5).")] = None
    min_actors: MinActors = None
    max_actors: MaxActors = None
    gpus: Annotated[
        int | None, typer.Option(help="GPUs to ask for; 0: none (those there are, more where the model gains by them).")
    ] = None
    memory: Memory = None
    again: Annotated[
        str | None,
        typer.Option(
            metavar="REASON[,REASON]",
            help="Try scans again that an older decoder (unsupported) or too many runs (access_denied) gave up.",
        ),
    ] = None
    include: Include = None
    exclude: Exclude = None
    since: Since = None
    site: Annotated[str | None, typer.Option(help="Name of the hospital or department of all these scans.")] = None
    site_from: Annotated[
        str | None,
        typer.Option(metavar="N|institution", help="Read the site from the N-th folder below ARCHIVE, or the header."),
    ] = None
    no_identity: Annotated[
        bool, typer.Option("--no-identity", help="Do not keep study, series and image UIDs in SCORES/identity.")
    ] = False
    score_unfamiliar: Annotated[
        bool,
        typer.Option(
            "--score-unfamiliar",
            help="For research: keep the probability of unfamiliar films, which stay rejected, without prediction.",
        ),
    ] = False
    largest_scan: Annotated[
        str | None, typer.Option(help="Do not fetch larger files than this, e.g. 500MiB (1GiB).")
    ] = None
    allow_removals: Annotated[
        bool, typer.Option("--allow-removals", help="Mark files as removed even if most of them are gone.")
    ] = False
    wait: Annotated[str | None, typer.Option(help="Wait for another run with this model, e.g. 10m (0s).")] = None
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html beside the run.")] = False
    thumbnails: Annotated[
        int | None,
        typer.Option(help="Show this many films of the worklist in the report (0). They are patients' images."),
    ] = None


def score(
    model: Annotated[
        str,
        typer.Option(
            metavar="BUNDLE|ROLE",
            help="The bundle to score with; production, shadow or candidate: the one that `promote` named.",
            parser=model_location,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Where the scores go; one place for every night and model.", parser=location)
    ],
    options: ScoreOptions,
    archive: Annotated[
        str | None,
        typer.Argument(metavar="[ARCHIVE|CATALOG]", help="Scans to score, or a catalogue of them.", parser=location),
    ] = None,
    uris: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Score the files named here, without a listing: URIs line by line, or a column uri of CSV or Parquet.",
            parser=location,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: how many scans, how long, at what cost.")
    ] = False,
    price: Annotated[float | None, typer.Option(help="Price of a core-hour, for --dry-run.")] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            envvar="RAYSCAN_NOTIFY",
            help="Tell how it ended there, repeatable: mail, Teams, Slack, a webhook, as apprise writes it.",
        ),
    ] = None,
    metrics_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.prom", help="Keep the metrics in this file, for node_exporter to read.", parser=location
        ),
    ] = None,
    metrics_push: Annotated[
        str | None, typer.Option(metavar="URL", help="Push the metrics to this Pushgateway of Prometheus.")
    ] = None,
    dashboard: Dashboard = False,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Score what this model has not scored yet, into Parquet. Run it again to resume, or every night."""
    source = archive or uris
    if source is None or (archive and uris):
        raise InputError("name what to score: an archive or a catalogue, or, instead of it, a file of URIs (--uris)")
    settings = score_settings(options, names_uris=uris is not None)
    from cluster.metrics_export import exported
    from cluster.notify import channels, notified

    to = channels(notify or [])
    with (
        notified([] if dry_run else to, out) as night,
        exported(out, *((None, None) if dry_run else (metrics_file, metrics_push))) as metrics,
    ):
        model = _check_score(source, model, out, settings, address)
        import pipelines.scoring.runs
        from cluster.session import ray_session

        if dry_run:
            plan = pipelines.scoring.runs.preview(source, model, out, settings, price_per_core_hour=price)
            output.show(plan, as_json=json)
            return
        records = pipelines.scoring.runs.score(
            source,
            model,
            out,
            settings,
            lambda: ray_session(address, dashboard=dashboard, working_on="score"),
            ended=night.runs.append,
            metrics=metrics,
        )
        output.show(records if json else [record.in_short() for record in records], as_json=json)
        left_out = [line for record in records for line in record.left_out()]
        for line in left_out:
            output.complain(f"{line}; the next run tries them again")
        if left_out:
            raise typer.Exit(IncompleteError.exit_code)


def _check_score(source: str, model: str, out: str, settings: "ScoreSettings", address: str | None) -> str:
    """Refuse what can be refused at once; returns the bundle that `model` means."""
    from pipelines.scoring.settings import operating_point

    preflight.check_ray(address)
    if settings.names_uris:
        preflight.check_uris(source)
    else:
        preflight.check_source(source)
    model = preflight.find_model(model, out)
    (bundle,) = preflight.check_bundles([model])
    operating_point(bundle.calibration, settings.operating_point)
    preflight.check_place(out)
    return model


def score_settings(options: ScoreOptions, *, names_uris: bool = False) -> "ScoreSettings":
    """The settings that the flags of `score` ask for. Raises `InputError` where a value is out of range."""
    from pipelines.ingest.filters import parse_filters
    from pipelines.scoring.settings import ScoreSettings, reasons

    return ScoreSettings(
        report=not options.no_report,
        names_uris=names_uris,
        identity=not options.no_identity,
        score_unfamiliar=options.score_unfamiliar,
        allow_removals=options.allow_removals,
        filters=parse_filters(options.include, options.exclude, options.since),
        **given(
            shard_size=options.shard_size,
            operating_point=options.operating_point,
            precision=options.precision,
            max_nights=options.max_nights,
            actors=actor_limits(options.min_actors, options.max_actors, options.memory, options.gpus),
            again=reasons(options.again) if options.again else None,
            site=options.site,
            site_from=options.site_from,
            largest_scan=size(options.largest_scan) if options.largest_scan else None,
            wait=seconds(options.wait) if options.wait else None,
            thumbnails=options.thumbnails,
        ),
    )


def compact(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)],
    model: Annotated[str | None, typer.Option(help="Id of one model (all of them).")] = None,
    wait: Annotated[str | None, typer.Option(help="Wait for a run that is under way there, e.g. 10m (0s).")] = None,
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
        str | None, typer.Argument(help="SQL over the views scores, latest, rejects, runs. Default: a summary.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the answer to this file: .csv, .json or .parquet.", parser=location),
    ] = None,
    format: Annotated[Format | None, typer.Option(help="table by default, or what the name of FILE says.")] = None,  # noqa: A002
    as_of: Annotated[
        str | None, typer.Option(metavar="DATE|VERSION", help="Ask the scores as they were then; see `history`.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory the question may take, e.g. 4GB (half of the machine's).")
    ] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json; with --out, a summary.")] = False,
) -> None:
    """Ask the scores in SQL. A question is one SELECT: it changes nothing, and reads nothing but the scores."""
    preflight.check_runs(scores)
    from pipelines.table.guarded import Bounds
    from pipelines.table.versions import parse_as_of

    bounds = Bounds(memory=size(memory) if memory else 0)
    when = None if as_of is None else parse_as_of(as_of)
    if out is None:
        from cluster.answers import print_answer
        from pipelines.table.query import ask

        print_answer(ask(scores, sql, bounds=bounds, as_of=when), "json" if json else format or "table")
        return
    from pipelines.table.export import export_answer

    if format == "table":
        raise InputError("a table is for a terminal; --out takes --format csv, json or parquet")
    preflight.check_page(out)
    output.show(export_answer(scores, sql, out, format, bounds=bounds, as_of=when), as_json=json)


def history(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)],
    config: Config = None,
    json: Json = False,
) -> None:
    """List the versions of the scores: when each was made, by what, by which run, and of how many rows."""
    preflight.check_runs(scores)
    from cluster.answers import print_answer
    from pipelines.table.versions import history

    print_answer(history(scores), "json" if json else "table")


def report(
    subject: Annotated[str, typer.Argument(metavar="STUDY|BUNDLE|SCORES", help="What to show.", parser=location)],
    out: Annotated[str, typer.Option(metavar="R.html", help="The page.", parser=location)],
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY|A,B",
            help="For a study: another study to compare with. For scores: the ids of two models.",
            parser=study_or_models,
        ),
    ] = None,
    thumbnails: Annotated[
        int,
        typer.Option(help="For scores: show this many films of the worklist, with maps. They are patients' images."),
    ] = 0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Draw a study, a model or the scores as one self-contained page."""
    preflight.check_report(subject, out, compare, thumbnails)
    from cluster.report import write_report

    output.show({"report": write_report(subject, out, compare=compare, thumbnails=thumbnails)}, as_json=json)
