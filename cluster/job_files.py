"""What a submitted verb needs of this machine: its arguments are checked here, and its small files sent along.

A mistake is then told at once, and costs no job. A file that is named by a relative path, on the command line or in the
job file, lies at the same path below the folder in which the job runs, so that neither has to be changed. What such a
file names itself, as a recipe does its weights, is not sent: give it a URI.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from typer.core import TyperCommand

from models.errors import InputError

OF_THIS_MACHINE: Final = ("config", "recipe", "space", "intended_use", "labels", "uris")
"""Options whose value may be a small file; data lie in storage, and lists of patients do not travel."""
LARGEST: Final = 20 << 20
"""Bytes of a file that is sent along, at most."""


def check_arguments(verb: TyperCommand, name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Parse them as the job will; the values of the job file, by option.

    Raises what typer raises for a wrong argument, a misspelt key of the job file included.
    Raises `InputError` where the job file names an address of `notify`, which may hold a secret: it would lie on every
    node; and where the metrics are to be kept in a file that would be lost with the job. A job file by an absolute
    path that is not here is the cluster's own; then nothing is checked.
    """
    config = next((Path(value) for option, value in _named(arguments) if option == "config"), Path())
    if config.is_absolute() and not config.exists():
        return {}
    values = verb.make_context(name, list(arguments)).default_map or {}
    if values.get("notify"):
        raise InputError(
            "the job file's address of notify may hold a secret, and the file is sent to every node; set RAYSCAN_NOTIFY"
            " in the nodes' environment instead"
        )
    file = dict(_named(arguments)).get("metrics_file") or values.get("metrics_file")
    if file and not Path(file).is_absolute():
        raise InputError(
            f"--metrics-file {file} would lie in the job's own folder, which goes with the job; give an absolute path,"
            " which is the driver's node's, or --metrics-push"
        )
    return values


def files_to_send(arguments: Sequence[str], values: Mapping[str, Any]) -> list[Path]:
    """The relative paths of files that a verb's arguments and the values of its job file name, each once.

    Raises `InputError` for a file that is too large to send, or whose path leads out of the current folder.
    """
    named = (*_named(arguments), *values.items())
    paths = dict.fromkeys(Path(str(value)) for option, value in named if option in OF_THIS_MACHINE)
    found = [path for path in paths if not path.is_absolute() and path.is_file()]
    for path in found:
        if ".." in path.parts:
            raise InputError(f"{path} lies outside the current folder; submit from the folder above it")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is too large to send along; put it into storage and name its URI")
    return found


def send(paths: Sequence[Path], folder: Path) -> None:
    """Copy files to their relative paths below a folder."""
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _named(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Option and value of each option on a command line that has one."""
    for place, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        option, given, value = argument.removeprefix("--").partition("=")
        if given:
            yield option.replace("-", "_"), value
        elif place + 1 < len(arguments):
            yield option.replace("-", "_"), arguments[place + 1]
