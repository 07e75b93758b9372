"""How a verb, which is a function, becomes a command: its options, its log, and one line and an exit code for errors.

A verb may take a group of options as one parameter: a dataclass whose fields are written as a verb's parameters are.
On the command line and in a job file each field is an option of its own.
"""

import functools
import inspect
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster import output
from models.errors import RayscanError
from models.messages import root_cause
from pipelines import stop

INTERRUPTED: Final = 128 + signal.SIGINT
_HOME: Final = Path(__file__).resolve().parents[1]
"""Where rayscan's packages lie."""
_DEBUG: Final = "debug"
_DEBUG_OPTION: Final = Annotated[
    bool, typer.Option("--debug", help="Log more, and print the traceback where it fails. Also: RAYSCAN_DEBUG=1.")
]


def add_verb(app: typer.Typer, function: Callable[..., None]) -> None:
    """Make a function a command: log to stderr, one line instead of a traceback, the right exit code.

    Every verb gets the option `--debug`, which prints the traceback as well; so does RAYSCAN_DEBUG=1.
    """

    @functools.wraps(function)
    def command(**values: Any) -> None:
        debug = bool(values.pop(_DEBUG) or os.environ.get("RAYSCAN_DEBUG"))
        output.set_up_logging(verbose=debug)
        try:
            function(**_grouped(function, values))
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # typer ends the process as each of them asks
        except KeyboardInterrupt as error:
            output.complain("interrupted; run the same command again to go on where it can be resumed")
            if stop.was_abandoned():  # it waits for a store, and Python would wait for it
                output.restore_terminal()
                os._exit(INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from error
        except SystemExit as error:  # SIGTERM while Ray is up: see `cluster/session.py`
            output.complain("stopped; run the same command again to go on where it can be resumed")
            raise typer.Exit(error.code if isinstance(error.code, int) else 1) from error
        except RayscanError as error:
            _print_traceback(error, debug)
            output.complain(str(root_cause(error)))
            raise typer.Exit(error.exit_code) from error
        except Exception as error:
            _print_traceback(error, debug)
            output.complain(_fault(error))
            raise typer.Exit(1) from error

    shown = [*_options(function), _option(_DEBUG, _DEBUG_OPTION, False)]
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined] # which typer reads
    command.__annotations__ = {option.name: option.annotation for option in shown}
    app.command()(command)


def _options(function: Callable[..., None]) -> Iterator[inspect.Parameter]:
    """The parameters of a verb, with the fields of a group in the place of the group."""
    for parameter in inspect.signature(function).parameters.values():
        if is_dataclass(parameter.annotation):
            for field in fields(parameter.annotation):
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                yield _option(field.name, field.type, default)
        else:
            yield _option(parameter.name, parameter.annotation, parameter.default)


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _grouped(function: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a verb from the values of its options; the inverse of `_options`."""
    arguments = dict(values)
    for parameter in inspect.signature(function).parameters.values():
        group = parameter.annotation
        if is_dataclass(group) and isinstance(group, type):
            arguments[parameter.name] = group(**{field.name: arguments.pop(field.name) for field in fields(group)})
    return arguments


def _fault(error: Exception) -> str:
    """One line on an error that nobody foresaw: what failed and where, and the file its traceback was written to."""
    from cluster import run_log

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HOME)] or frames
    place = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
    cause = root_cause(error)
    message = next(iter(str(cause).strip().splitlines()), "")[:300]
    return (
        f"unexpected {type(cause).__name__}: {message} ({place}); the traceback is in {run_log.write_traceback(error)}"
        " and --debug prints it; please report it"
    )


def _print_traceback(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
