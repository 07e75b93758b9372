"""The options that verbs share, each written once, and the wrapper every verb stands in."""

import functools
import inspect
import os
import signal
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, ParamSpec

import typer

from cluster import output
from cluster.locations import named_or_file, weights_location
from cluster.settings import job_defaults
from models.errors import RayscanError

if TYPE_CHECKING:
    from tuning.recipes.recipe import Recipe

P = ParamSpec("P")

INTERRUPTED = 128 + signal.SIGINT
_HOME: Final = Path(__file__).resolve().parents[1]
"""Where rayscan's packages lie."""


def _read_job_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        names = {parameter.name: parameter.name for parameter in context.command.params if parameter.name}
        for parameter in context.command.params:  # a flag may be called otherwise than what it sets: --from
            names |= {flag.lstrip("-").replace("-", "_"): parameter.name for flag in parameter.opts if parameter.name}
        del names["config"]
        try:
            values = job_defaults(path, str(context.info_name), names)
            context.default_map = {names[key]: value for key, value in values.items()}
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
Debug = Annotated[
    bool, typer.Option("--debug", help="Log more, and print the traceback where it fails. Also: RAYSCAN_DEBUG=1.")
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
    str | None,
    typer.Option(
        metavar="NAME|R.toml", help="How to make the model; `rayscan recipes` lists them.", parser=named_or_file
    ),
]
Model = Annotated[str | None, typer.Option(help="majority, mlp, cnn, or the name of a timm backbone.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|imagenet",
        help="Pretrained weights to start from: .safetensors or .pth.",
        parser=weights_location,
    ),
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
    """Register a function as a verb: log to stderr, one line instead of a traceback, the right exit code.

    Every verb gets the option `--debug`, which prints the traceback as well; so does RAYSCAN_DEBUG=1.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
            debug = bool(kwargs.pop(_DEBUG, False) or os.environ.get("RAYSCAN_DEBUG"))
            output.set_up_logging(verbose=debug)
            try:
                function(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
                raise  # typer ends the process as each of them asks
            except KeyboardInterrupt as error:
                output.complain("interrupted; run the same command again to go on where it can be resumed")
                raise typer.Exit(INTERRUPTED) from error
            except RayscanError as error:
                _print_traceback(error, debug)
                output.complain(str(_cause(error)))
                raise typer.Exit(error.exit_code) from error
            except Exception as error:
                _print_traceback(error, debug)
                output.complain(_fault(error))
                raise typer.Exit(1) from error

        app.command()(_with_debug(wrapped))
        return wrapped

    return register


_DEBUG: Final = "debug"


def _with_debug(function: Callable[P, None]) -> Callable[P, None]:
    """The function with `--debug` among the options that typer reads from its signature, and its annotations."""
    shown = inspect.signature(function)
    debug = inspect.Parameter(_DEBUG, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    function.__signature__ = shown.replace(parameters=[*shown.parameters.values(), debug])  # type: ignore[attr-defined]
    function.__annotations__ = {**function.__annotations__, _DEBUG: Debug}
    return function


def _fault(error: Exception) -> str:
    """One line on an error that nobody foresaw: what failed and where, and the file its traceback was written to."""
    from cluster import run_log

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HOME)] or frames
    place = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
    cause = _cause(error)
    said = next(iter(str(cause).strip().splitlines()), "")[:300]
    return (
        f"unexpected {type(cause).__name__}: {said} ({place}); the traceback is in {run_log.write_traceback(error)}"
        " and --debug prints it; please report it"
    )


def _cause(error: BaseException) -> BaseException:
    """What a worker raised: Ray wraps it, with its traceback as text, once for each task that waited for it."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _print_traceback(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)


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

    `training` are fields of `tuning.training.settings.TrainSettings`. Raises `InputError` where neither is named.
    """
    from dataclasses import replace

    from models.errors import InputError
    from tuning.recipes.recipe import Recipe, read_recipe

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
