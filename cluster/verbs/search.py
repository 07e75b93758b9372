"""The verb that searches for the best model; `search_settings` makes its flags into the search's own settings."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from cluster import output, preflight
from cluster.locations import location, mirror_location, named_or_file
from cluster.options import Address, Config, IntendedUseFile, Json, NoFilms, Weights, given
from cluster.settings import seconds
from tuning.recipes.choices import Select
from tuning.search.settings import Method, SearchSettings
from tuning.toml_files import read_intended_use


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search; None takes the default of `SearchSettings`."""

    trials: Annotated[
        int | None,
        typer.Option(help="Trials of the study, earlier ones included (20; with --time-budget as many as it allows)."),
    ] = None
    time_budget: Annotated[str | None, typer.Option(help="Stop with the best so far, e.g. 30m.")] = None
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many trials in a row without a gain (never).")
    ] = None
    search: Annotated[Method, typer.Option(help="How to pick what to try.")] = "tpe"
    epochs: Annotated[int | None, typer.Option(help="Most epochs of a trial (9).")] = None
    no_pruning: Annotated[bool, typer.Option("--no-pruning", help="Train every trial to its last epoch.")] = False
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|S.toml", help="Where to search: default, grid, cnn-grid, or a file.", parser=named_or_file
        ),
    ] = None
    family: Annotated[
        list[str] | None, typer.Option(help="Family to search, repeatable: mlp, cnn, a timm name (the space's).")
    ] = None
    resolution: Annotated[list[int] | None, typer.Option(help="Input side to search, repeatable (the space's).")] = None
    weights: Weights = None
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="log_score, auc or sensitivity@specificity=0.9; beside it latency for a Pareto front, or latency<=5"
            " (milliseconds a film) as a limit (log_score)."
        ),
    ] = None
    probes: Annotated[
        int | None, typer.Option(help="Heads on frozen features to train first; the best are fine-tuned first (0).")
    ] = None
    finals: Annotated[
        int | None, typer.Option(help="Train this many of the best again, at the data set's own size (0).")
    ] = None
    confirm: Annotated[
        int | None, typer.Option(help="Confirm this many of the best by cross-validation over patients (0).")
    ] = None
    warm_start: Annotated[
        str | None,
        typer.Option("--from", metavar="STUDY", help="Try the best of an earlier study first.", parser=location),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the search (0).")] = None
    workers: Annotated[int | None, typer.Option(help="Processes that train one trial together (1).")] = None
    cpus_per_trial: Annotated[
        int | None,
        typer.Option(
            help="CPUs of each worker of a trial (1, or with a time budget as many as let whole trainings end)."
        ),
    ] = None
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(help="GPUs of each worker; 0.25 packs four small trials onto one (so where there is one)."),
    ] = None
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at a time (as many as there is room for when the cluster has grown).")
    ] = None
    select: Annotated[
        Select | None,
        typer.Option(
            help="How the model is picked: auc is the best by the objective, robust the most robust of the five best."
        ),
    ] = None
    intended_use: IntendedUseFile = None
    no_films: NoFilms = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the study at --out, whether it was killed or ended.")
    ] = False


def tune(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.", parser=location)],
    out: Annotated[str, typer.Option(help="Where the study goes; its best bundle is STUDY/best.", parser=location)],
    options: SearchOptions,
    optuna_storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.log|URL",
            help="Copy the trials there for optuna-dashboard: a journal, postgresql://…",
            parser=mirror_location,
        ),
    ] = None,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Search architectures and augmentations; the best trial becomes a bundle."""
    settings = search_settings(options)
    preflight.check_ray(address)
    preflight.check_search(dataset, out, settings, optuna_storage)
    from tuning.search.space import searched_space

    space = searched_space(dataset, settings)  # refuses one that cannot be searched, before Ray is imported
    from cluster.session import ray_session
    from tuning.search import driver

    with ray_session(address, working_on="tune"):
        summary = driver.search(dataset, out, settings, space=space, optuna_storage=optuna_storage)
    output.show(summary, as_json=json)


def search_settings(options: SearchOptions) -> SearchSettings:
    """The settings that the flags of `tune` ask for. Raises `InputError` where a value is out of range."""
    settings = SearchSettings(
        search=options.search,
        show_films=not options.no_films,
        resume=options.resume,
        **given(
            trials=options.trials,
            time_budget_s=seconds(options.time_budget) if options.time_budget else None,
            patience=options.patience,
            epochs=options.epochs,
            space=options.space,
            families=tuple(options.family) if options.family else None,
            resolutions=tuple(options.resolution) if options.resolution else None,
            weights=options.weights,
            objectives=tuple(options.objective) if options.objective else None,
            probes=options.probes,
            finals=options.finals,
            confirm=options.confirm,
            warm_start=options.warm_start,
            seed=options.seed,
            workers_per_trial=options.workers,
            cpus_per_trial=options.cpus_per_trial,
            gpus_per_trial=options.gpus_per_trial,
            max_concurrent=options.concurrent,
            select=options.select,
            intended_use=None if options.intended_use is None else read_intended_use(options.intended_use),
        ),
    )
    # no trial is stopped before its grace ends, and none has more epochs than these
    return replace(settings, grace_epochs=settings.epochs) if options.no_pruning else settings
