"""The options that verbs share, each written once, and the wrapper every verb stands in."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from cluster import output
from cluster.settings import job_defaults
from models.errors import RayscanError

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
