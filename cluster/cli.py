"""`rayscan`: one thin function per verb.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or input (one line says
what and how to mend it), 3 incomplete (run again to resume). Rooms are imported inside the verbs: `--help` must answer
at once, and torch alone takes two seconds to import.
"""

from enum import StrEnum
from typing import Annotated

import typer

from cluster import output
from cluster.options import (
    Address,
    Augment,
    BatchSize,
    Calibrate,
    Config,
    Epochs,
    JobsAddress,
    Json,
    LearningRate,
    Model,
    NoFilms,
    RecipeName,
    Select,
    Selection,
    Size,
    Weights,
    chosen_recipe,
    given,
    verb,
)
from cluster.settings import seconds

app = typer.Typer(
    name="rayscan",
    help="Find pneumonia in chest X-rays at archive scale. Assists triage; not a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Search(StrEnum):
    """How `tune` picks what to try next."""

    TPE = "tpe"
    RANDOM = "random"
    GRID = "grid"


class Split(StrEnum):
    """The films a model is judged on."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Decode(StrEnum):
    """How much of a JPEG is decoded."""

    DCT = "dct"
    EXACT = "exact"


class Precision(StrEnum):
    """How exactly a model is run."""

    FP32 = "fp32"
    BF16 = "bf16"


class PriorShift(StrEnum):
    """How the share of disease among unlabelled films is estimated."""

    SAERENS = "saerens"
    BBSE = "bbse"


class Format(StrEnum):
    """How `query` prints its answer."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@verb(app)
def demo(
    out: Annotated[str, typer.Option(help="Local folder for everything the demo makes.")] = "rayscan-demo",
    config: Config = None,
    json: Json = False,
) -> None:
    """Run the whole line on generated films: archive, catalogue, data set, search, scores, query."""
    from cluster.demo import run_demo

    output.show(run_demo(out), as_json=json)


@verb(app)
def catalog(
    archive: Annotated[str, typer.Argument(help="Folder or bucket of scans: s3://, gs://, az:// or a local path.")],
    out: Annotated[str, typer.Option(help="Where the catalogue goes.")],
    labels: Annotated[
        str | None, typer.Option(metavar="path|CSV", help="`path`: from folders NORMAL, PNEUMONIA; or a CSV file.")
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Read every file: its size, tags, copies, what is broken.")
    ] = False,
    val_fraction: Annotated[float | None, typer.Option(help="Share of films for validation (0.15).")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Share of films for test (0.15; 0 where the archive has its own folders).")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of the hospital or department, for the `site` column.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split (0).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List an archive: what is there, its labels, and a split that keeps each patient on one side."""
    from pipelines.ingest.catalog import CatalogSettings, build_catalog

    settings = CatalogSettings(
        inspect=inspect,
        **given(labels=labels, val_fraction=val_fraction, test_fraction=test_fraction, site=site, seed=seed),
    )
    output.show(build_catalog(archive, out, settings), as_json=json)


@verb(app)
def audit(
    catalog: Annotated[str, typer.Argument(help="A catalogue, best one made with --inspect.")],
    out: Annotated[str | None, typer.Option(metavar="R.html", help="Write the findings as a page too.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Look for what spoils a study: imbalance, copies, patients on two sides, shortcuts, broken files."""
    from pipelines.ingest.audit import audit as run_audit
    from pipelines.ingest.audit import render_audit
    from pipelines.results.report import put_page

    findings = run_audit(catalog)
    if out:
        put_page(render_audit(findings), out)
    output.show(findings, as_json=json)


@verb(app)
def prepare(
    catalog: Annotated[str, typer.Argument(help="A catalogue with labels.")],
    out: Annotated[str, typer.Option(help="Where the data set goes.")],
    size: Annotated[int | None, typer.Option(help="Side of the square films in pixels (224).")] = None,
    decode: Annotated[
        Decode | None, typer.Option(help="exact: whole JPEG; dct: at the smallest scale that covers the size (dct).")
    ] = None,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Decode every labelled film once, to grey levels in Parquet."""
    from cluster.session import ray_session
    from pipelines.ingest.prepare import PrepareSettings
    from pipelines.ingest.prepare import prepare as run_prepare

    settings = PrepareSettings(**given(size=size, decode=decode and decode.value))
    with ray_session(address):
        summary = run_prepare(catalog, out, settings)
    output.show(summary, as_json=json)


@verb(app)
def train(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.")],
    out: Annotated[str, typer.Option(help="Where the bundle goes.")],
    recipe: RecipeName = None,
    model: Model = None,
    weights: Weights = None,
    calibration: Calibrate = None,
    select: Select = None,
    size: Size = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    augment: Augment = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation (0).")] = None,
    no_films: NoFilms = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train one model, calibrate it, lock its operating points, and save it as a bundle. Flags win over the recipe."""
    from tuning.train import train as run_train

    found = chosen_recipe(
        recipe=recipe,
        model=model,
        weights=weights,
        calibration=calibration,
        select=select,
        size=size,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
    )
    output.show(run_train(dataset, out, found, show_films=not no_films), as_json=json)


@verb(app)
def crossvalidate(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`; its test films are not read.")],
    recipe: RecipeName = None,
    model: Model = None,
    weights: Weights = None,
    calibration: Calibrate = None,
    select: Select = None,
    size: Size = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    augment: Augment = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds, weights, order and augmentation (0).")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts of the patients; so many models are trained (5).")] = None,
    out: Annotated[str | None, typer.Option(metavar="CV.html", help="Write the figures as a page too.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Judge a recipe on patients held out, fold by fold, and on films made otherwise, before a model is made by it."""
    from tuning.crossvalidate import crossvalidate as run_crossvalidate

    found = chosen_recipe(
        recipe=recipe,
        model=model,
        weights=weights,
        calibration=calibration,
        select=select,
        size=size,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
    )
    result = run_crossvalidate(dataset, found, report=out, **given(folds=folds))
    output.show(result if json else result.in_short(), as_json=json)


@verb(app)
def recipes(config: Config = None, json: Json = False) -> None:
    """The recipes of `train`: what earlier projects on these films did, and today's best."""
    from tuning.recipe import read_recipe, recipe_names

    output.show({name: read_recipe(name).about for name in recipe_names()}, as_json=json)


@verb(app)
def tune(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.")],
    out: Annotated[str, typer.Option(help="Where the study goes; its best bundle is STUDY/best.")],
    trials: Annotated[int | None, typer.Option(help="Trials of the study, earlier ones included (20).")] = None,
    time_budget: Annotated[str | None, typer.Option(help="Stop with the best so far, e.g. 30m.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many trials in a row without a gain (never).")
    ] = None,
    search: Annotated[Search, typer.Option(help="How to pick what to try.")] = Search.TPE,
    epochs: Annotated[int | None, typer.Option(help="Most epochs of a trial (8).")] = None,
    space: Annotated[
        str | None, typer.Option(metavar="NAME|S.toml", help="Where to search: default, grid, cnn-grid, or a file.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Family to search, repeatable: mlp, cnn, a timm name (the space's).")
    ] = None,
    resolution: Annotated[
        list[int] | None, typer.Option(help="Input side to search, repeatable (the space's).")
    ] = None,
    weights: Weights = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="auc or sensitivity@specificity=0.9; beside it latency, for a Pareto front (auc)."),
    ] = None,
    probes: Annotated[
        int | None, typer.Option(help="Heads on frozen features first; the best are fine-tuned first (0).")
    ] = None,
    finals: Annotated[
        int | None, typer.Option(help="So many of the best once more, at the data set's own size (0).")
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option("--from", metavar="STUDY", help="Try the best of an earlier study first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search (0).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train one trial together (1).")] = None,
    select: Annotated[
        Selection | None, typer.Option(help="What the model is picked by: robust scores the five best on spoilt films.")
    ] = None,
    no_films: NoFilms = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study at --out, killed or ended.")] = False,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Search architectures and augmentations; the best trial becomes a bundle."""
    from cluster.session import ray_session
    from tuning.search import SearchSettings
    from tuning.search import search as run_search

    settings = SearchSettings(
        search=search.value,
        resume=resume,
        show_films=not no_films,
        **given(
            trials=trials,
            patience=patience,
            workers_per_trial=workers,
            epochs=epochs,
            seed=seed,
            time_budget_s=seconds(time_budget) if time_budget else None,
            select=select and select.value,
            space=space,
            families=tuple(family) if family else None,
            resolutions=tuple(resolution) if resolution else None,
            weights=weights,
            objectives=tuple(objective) if objective else None,
            probes=probes,
            finals=finals,
            warm_start=warm_start,
        ),
    )
    with ray_session(address):
        summary = run_search(dataset, out, settings)
    output.show(summary, as_json=json)


@verb(app)
def evaluate(
    bundle: Annotated[str, typer.Argument(help="A model.")],
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.")],
    split: Annotated[Split, typer.Option(help="Reading test is written into the bundle's ledger, each time.")],
    prior_shift: Annotated[
        PriorShift | None,
        typer.Option(help="Estimate the share of disease from the scores alone; assumes label shift."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="BUNDLE", help="Compare with another model; may be given again.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="R.html", help="Write the pictures as a page too.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Judge a model on one split: AUC, accuracy, sensitivity, specificity, with 95 % intervals."""
    from pipelines.evaluate import compare
    from pipelines.evaluate import evaluate as run_evaluate

    if against:
        found = compare([bundle, *against], dataset, split.value, report=out)
        output.show(found if json else found.in_short(), as_json=json)
        return
    output.show(
        run_evaluate(bundle, dataset, split.value, report=out, prior_shift=prior_shift and prior_shift.value),
        as_json=json,
    )


@verb(app)
def score(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE|CATALOG", help="Scans to score, or a catalogue of them.")],
    model: Annotated[str, typer.Option(help="The bundle to score with.")],
    out: Annotated[str, typer.Option(help="Where the scores go; one place for every night and model.")],
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
    from cluster.session import ray_session
    from pipelines.scoring.runs import ScoreSettings, preview
    from pipelines.scoring.runs import score as run_score

    settings = ScoreSettings(
        report=not no_report,
        **given(
            shard_size=shard_size,
            operating_point=operating_point,
            precision=precision and precision.value,
            max_nights=max_nights,
            most_actors=most_actors,
            wait=seconds(wait) if wait else None,
            thumbnails=thumbnails,
        ),
    )
    if dry_run:
        output.show(preview(archive, model, out, settings, price_per_core_hour=price), as_json=json)
        return
    records = run_score(archive, model, out, settings, lambda: ray_session(address, dashboard=dashboard))
    output.show(records if json else [record.in_short() for record in records], as_json=json)


@verb(app)
def compact(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.")],
    model: Annotated[str | None, typer.Option(help="Id of one model (all of them).")] = None,
    wait: Annotated[str | None, typer.Option(help="Wait for a run that is at work there, e.g. 10m (0s).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Merge the small parts of finished runs, per model and month; no row is ever shown twice or lost."""
    from pipelines.scoring.compact import compact as run_compact

    output.show(run_compact(scores, model=model, wait=seconds(wait) if wait else 0.0), as_json=json)


@verb(app)
def query(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.")],
    sql: Annotated[
        str | None, typer.Argument(help="A question to the views scores, latest, rejects, runs. Default: a summary.")
    ] = None,
    format: Annotated[Format, typer.Option(help="parquet writes bytes: redirect stdout to a file.")] = Format.TABLE,  # noqa: A002
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Ask the scores in SQL."""
    from cluster.answers import print_answer
    from pipelines.results.query import ask

    print_answer(ask(scores, sql), "json" if json else format.value)


@verb(app)
def report(
    subject: Annotated[str, typer.Argument(metavar="STUDY|BUNDLE|SCORES", help="What to show.")],
    out: Annotated[str, typer.Option(metavar="R.html", help="The page.")],
    compare: Annotated[
        str | None, typer.Option(metavar="A,B", help="Of scores: set two models beside each other, by their ids.")
    ] = None,
    thumbnails: Annotated[
        int, typer.Option(help="Of scores: show so many films of the worklist, with maps. They are patients' images.")
    ] = 0,
    config: Config = None,
    json: Json = False,
) -> None:
    """Draw a study, a model or the scores as one self-contained page."""
    from pipelines.results.report import write_report

    output.show({"report": write_report(subject, out, compare=compare, thumbnails=thumbnails)}, as_json=json)


@verb(app)
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="The verb and its arguments.")],
    address: JobsAddress = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is submitted.")] = False,
    config: Config = None,
) -> None:
    """Run a verb on a cluster: streams its log and exits as it does."""
    from cluster.jobs import submit as run_submit

    raise typer.Exit(run_submit(command, address, wait=not no_wait))


@verb(app)
def jobs(address: JobsAddress = None, config: Config = None, json: Json = False) -> None:
    """List what was submitted to a cluster."""
    from cluster.jobs import list_jobs

    output.show(list_jobs(address), as_json=json)


@verb(app)
def logs(
    job: Annotated[str, typer.Argument(help="Id of the job, as `rayscan jobs` shows it.")],
    address: JobsAddress = None,
    config: Config = None,
) -> None:
    """Print a job's log so far."""
    from cluster.jobs import job_logs

    output.write(job_logs(job, address))


@verb(app)
def stop(
    job: Annotated[str, typer.Argument(help="Id of the job, as `rayscan jobs` shows it.")],
    address: JobsAddress = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Stop a job; what it wrote stays, and running the same verb again resumes it."""
    from cluster.jobs import stop_job

    output.show({"job": job, "stopped": stop_job(job, address)}, as_json=json)


@verb(app)
def doctor(
    uri: Annotated[str | None, typer.Argument(help="Storage every node must reach.")] = None,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check every node: versions, same code, clock, disk, GPU, storage."""
    from cluster.doctor import examine
    from cluster.session import ray_session

    with ray_session(address, dashboard=False):
        findings = examine(uri)
    output.show(findings, as_json=json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@verb(app)
def dashboard(address: JobsAddress = None, config: Config = None, json: Json = False) -> None:
    """Say where to look at what runs."""
    from cluster.jobs import dashboard_address

    output.show(dashboard_address(address), as_json=json)


def main() -> None:
    """Entry point of the `rayscan` command."""
    app(prog_name="rayscan")


if __name__ == "__main__":
    main()
