"""The options that verbs share, each written once, and the wrapper every verb stands in."""

import functools
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from cluster import output
from cluster.settings import job_defaults
from models.errors import RayscanError

if TYPE_CHECKING:
    from tuning.recipe import Recipe

P = ParamSpec("P")

INTERRUPTED = 128 + signal.SIGINT


def _read_job_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        known = {parameter.name for parameter in context.command.params if parameter.name} - {"config"}
        try:
            context.default_map = job_defaults(path, str(context.info_name), known)
        except RayscanError as error:
            raise typer.BadParameter(str(error)) from error
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="JOB.toml",
        callback=_read_job_file,
        is_eager=True,
        help="Job file with a table per verb, keys named as the flags; flags win.",
    ),
]
NoFilms = Annotated[
    bool, typer.Option("--no-films", help="Put no validation films into the bundle; they are patients' images.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary to stdout.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to work on (host:port or auto). Default: RAY_ADDRESS, else a Ray of its own."),
]
JobsAddress = Annotated[
    str | None, typer.Option(help="Dashboard of the cluster. Default: RAY_ADDRESS, else http://127.0.0.1:8265.")
]


class CalibrationMethod(StrEnum):
    """How logits become probabilities."""

    TEMPERATURE = "temperature"
    PLATT = "platt"
    ISOTONIC = "isotonic"


class Selection(StrEnum):
    """Which trial of a study, or combination of a grid, becomes the model."""

    AUC = "auc"
    ROBUST = "robust"


RecipeName = Annotated[
    str | None, typer.Option(metavar="NAME|R.toml", help="How to make the model; `rayscan recipes` lists them.")
]
Model = Annotated[str | None, typer.Option(help="majority, mlp, cnn, or the name of a timm backbone.")]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE|imagenet", help="Pretrained weights to start from: .safetensors or .pth.")
]
Calibrate = Annotated[CalibrationMethod | None, typer.Option(help="How probabilities are calibrated.")]
Select = Annotated[
    Selection | None, typer.Option(help="What is kept of a grid: robust scores the five best on spoilt films (auc).")
]
Size = Annotated[int | None, typer.Option(help="Side of the network's input (the data set's).")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the films (9).")]
LearningRate = Annotated[float | None, typer.Option(help="Highest of the schedule (0.002).")]
BatchSize = Annotated[int | None, typer.Option(help="Films of one step (32).")]
Augment = Annotated[float | None, typer.Option(help="Strength of augmentation; 0 is none (0.5).")]


def verb(app: typer.Typer) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a function as a verb: log to stderr, one line instead of a traceback, the right exit code."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            output.set_up_logging(verbose=bool(os.environ.get("RAYSCAN_DEBUG")))
            try:
                function(*args, **kwargs)
            except RayscanError as error:
                if os.environ.get("RAYSCAN_DEBUG"):
                    raise
                output.complain(str(error))
                raise typer.Exit(error.exit_code) from error
            except KeyboardInterrupt as error:
                output.complain("interrupted; run the same command again to go on where it can be resumed")
                raise typer.Exit(INTERRUPTED) from error

        return app.command()(wrapped)

    return register


def given(**values: Any) -> dict[str, Any]:
    """The options somebody set; the others take the default of the room's own settings."""
    return {name: value for name, value in values.items() if value is not None}


def chosen_recipe(
    *,
    recipe: str | None,
    model: str | None,
    weights: str | None,
    calibration: CalibrationMethod | None,
    select: Selection | None,
    size: int | None,
    **training: float | None,
) -> "Recipe":
    """The recipe that is named, or that of a model alone, with what the flags of `train` set in place of its own.

    `training` are fields of `tuning.train_settings.TrainSettings`. Raises `InputError` where neither is named.
    """
    from dataclasses import replace

    from models.errors import InputError
    from tuning.recipe import Recipe, read_recipe

    if recipe is None and model is None:
        raise InputError("say what to train: --recipe NAME (see `rayscan recipes`), or --model NAME")
    found = read_recipe(recipe) if recipe else Recipe(model=str(model))
    chosen = given(
        model=model,
        weights=weights,
        calibrate=calibration and calibration.value,
        select=select and select.value,
        size=size,
    )
    return replace(found, **chosen, training=replace(found.training, **given(**training)))
