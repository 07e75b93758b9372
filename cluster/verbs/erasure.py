"""The verb that erases patients and films from the scores."""

import os
import re
import sys
from typing import Annotated

import typer

from cluster import output, preflight
from cluster.locations import location
from cluster.options import Config, Json
from cluster.settings import seconds
from models.errors import InputError

_KEY = re.compile(r"[0-9a-f]{64}")


def erase(
    scores: Annotated[str, typer.Argument(help="Where the scores lie.", parser=location)],
    patients: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Patients, one a line: patient keys, or raw ids, which need RAYSCAN_PATIENT_SECRET.",
            parser=location,
        ),
    ] = None,
    uris: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Films, one URI a line, as the scores have it.", parser=location),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. What is erased cannot be brought back.")] = False,
    wait: Annotated[str | None, typer.Option(help="Wait for a run that is under way there, e.g. 10m (0s).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Erase patients or films from the scores, their older versions and the plans. It cannot be undone."""
    patience = seconds(wait) if wait else 0.0
    if patients is None and uris is None:
        raise InputError("say whom to erase: --patients FILE or --uris FILE")
    if not yes and not sys.stdin.isatty():
        raise InputError("what is erased cannot be brought back, and there is no terminal to ask on; add --yes")
    keys = patient_keys(_lines(patients, "file of patients")) if patients else []
    films = _lines(uris, "file of URIs") if uris else []
    preflight.check_runs(scores)
    import pipelines.table.erase

    def agreed(found: int, rows: int) -> bool:
        return yes or typer.confirm(f"erase {found} films, {rows} rows of {scores}, for good?", err=True)

    erased = pipelines.table.erase.erase(scores, patients=keys, uris=films, agreed=agreed, wait=patience)
    output.show(erased or "nothing was erased", as_json=json)


def patient_keys(lines: list[str]) -> list[str]:
    """The key of each patient: a key as it is, a raw id hashed. Raises `InputError` for raw ids without the secret."""
    from pipelines.ingest.patients import SECRET_VARIABLE, PatientKeys

    raw = [line for line in lines if not _KEY.fullmatch(line)]
    if raw and not os.environ.get(SECRET_VARIABLE):
        raise InputError(
            f"{len(raw)} of the patients are no patient keys; to find them by their raw ids set {SECRET_VARIABLE}"
            " to the secret of the catalogue"
        )
    keys = PatientKeys.from_environment() if raw else None
    return [keys.key(line) if keys and not _KEY.fullmatch(line) else line for line in lines]


def _lines(uri: str, what: str) -> list[str]:
    from pipelines.storage import read_object, require_file

    require_file(uri, what)
    try:
        lines = [line.strip() for line in read_object(uri).decode().splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not a text file; write one a line, in UTF-8") from error
    if not any(lines):
        raise InputError(f"{uri}: is empty; write one a line")
    return [line for line in lines if line]
