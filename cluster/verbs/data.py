"""Verbs from an archive, or the generated one of the demo, to a data set."""

from typing import Annotated

import typer

from cluster import output, preflight
from cluster.locations import labels_location, location
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
from models.spec import Decode, Fit, Preprocessing
from pipelines.splits import Patients


def demo(
    out: Annotated[
        str, typer.Option(help="Local folder for everything the demo makes.", parser=location)
    ] = "rayscan-demo",
    config: Config = None,
    json: Json = False,
) -> None:
    """Run the whole pipeline on generated films: archive, catalogue, data set, search, scores, query."""
    preflight.check_demo(out)
    from cluster.demo import run_demo

    output.show(run_demo(out), as_json=json)


def catalog(
    archive: Annotated[
        str, typer.Argument(help="Folder or bucket of scans: s3://, az:// or a local path.", parser=location)
    ],
    out: Annotated[str, typer.Option(help="Where the catalogue goes.", parser=location)],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="path|FILE",
            help="`path`: from folders NORMAL, PNEUMONIA; or a CSV or Parquet file.",
            parser=labels_location,
        ),
    ] = None,
    patients: Annotated[
        Patients | None,
        typer.Option(help="unknown: split even where films name no patient, each as a patient of its own (known)."),
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Read every file: its size, tags, duplicates, what is broken.")
    ] = False,
    val_fraction: Annotated[float | None, typer.Option(help="Share of films for validation (0.15).")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="Share of films for test (0.15; 0 where the archive has its own folders).")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    inventory: Annotated[
        str | None,
        typer.Option(
            metavar="MANIFEST.json",
            help="Read this S3 Inventory (CSV or Parquet) of the bucket instead of listing it.",
            parser=location,
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of the hospital or department, for the `site` column.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split (0).")] = None,
    min_actors: MinActors = None,
    max_actors: MaxActors = None,
    memory: Memory = None,
    dashboard: Dashboard = False,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """List an archive: what is there, its labels, and a split that keeps each patient in one part."""
    from pipelines.ingest.catalog_info import CatalogSettings
    from pipelines.ingest.filters import parse_filters

    settings = CatalogSettings(
        inspect=inspect,
        filters=parse_filters(include, exclude, since),
        inventory=inventory,
        actors=actor_limits(min_actors, max_actors, memory),
        **given(
            patients=patients,
            labels=labels,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            site=site,
            seed=seed,
        ),
    )
    if inspect:
        preflight.check_ray(address)
    preflight.check_labels(labels)
    preflight.check_inventory(inventory)
    if inventory is None:
        preflight.check_archive(archive)
    preflight.check_place(out)
    from pipelines.ingest.catalog import build_catalog
    from pipelines.stop import stoppable

    if not inspect:
        output.show(stoppable(lambda stop: build_catalog(archive, out, settings, stop), "catalog"), as_json=json)
        return
    from cluster.session import ray_session

    with ray_session(address, dashboard=dashboard, working_on="catalog"):
        output.show(build_catalog(archive, out, settings), as_json=json)


def audit(
    catalog: Annotated[str, typer.Argument(help="A catalogue, best one made with --inspect.", parser=location)],
    out: Annotated[
        str | None, typer.Option(metavar="R.html", help="Write the findings as a page too.", parser=location)
    ] = None,
    films: Annotated[
        int | None, typer.Option(min=0, help="Look at the pixels of at most so many films; 0: of none (6000).")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Look for what spoils a study: imbalance, duplicates, patients in two splits, shortcuts, broken files."""
    preflight.check_page(out)
    preflight.check_catalog(catalog)
    import pipelines.ingest.audit
    from pipelines.pages.audit import audit_page
    from pipelines.pages.page_file import put_page

    findings = pipelines.ingest.audit.audit(catalog, **given(films=films))
    if out:
        put_page(audit_page(findings), out)
    output.show(findings, as_json=json)


def prepare(
    catalog: Annotated[str, typer.Argument(help="A catalogue with labels.", parser=location)],
    out: Annotated[str, typer.Option(help="Where the data set goes.", parser=location)],
    size: Annotated[int | None, typer.Option(help="Side of the square films in pixels (224).")] = None,
    decode: Annotated[
        Decode | None, typer.Option(help="exact: all pixels; dct: JPEG scaled down; reduced: JPEG 2000, too (reduced).")
    ] = None,
    fit: Annotated[
        Fit | None, typer.Option(help="How a film becomes a square: stretched, with black bars, its middle (squash).")
    ] = None,
    harmonise: Annotated[
        bool, typer.Option("--harmonise", help="Cut all films to one shape; drop border, contrast, finest detail.")
    ] = False,
    aspect: Annotated[
        float | None, typer.Option(help="With --harmonise: width over height to cut to (that of most films).")
    ] = None,
    min_actors: MinActors = None,
    max_actors: MaxActors = None,
    memory: Memory = None,
    dashboard: Dashboard = False,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Decode every labelled film once, to grey levels in Parquet; run again, a killed one goes on."""
    chosen = given(size=size, decode=decode, fit=fit)
    Preprocessing(**chosen, harmonise=aspect)  # refuses values out of range
    actors = actor_limits(min_actors, max_actors, memory)
    preflight.check_ray(address)
    preflight.check_labelled(catalog)
    preflight.check_place(out)
    import pipelines.ingest.prepare
    from cluster.session import ray_session

    settings = pipelines.ingest.prepare.PrepareSettings(**chosen, harmonise=harmonise, aspect=aspect, actors=actors)
    with ray_session(address, dashboard=dashboard, working_on="prepare"):
        summary = pipelines.ingest.prepare.prepare(catalog, out, settings)
    output.show(summary, as_json=json)
