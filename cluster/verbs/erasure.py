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
            help="Patients, one a line: keys, or raw ids (ID or ID^^^ISSUER), which need RAYSCAN_PATIENT_SECRET.",
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
    named = _lines(patients, "file of patients") if patients else []
    films = _lines(uris, "file of URIs") if uris else []
    _require_secret(named)
    preflight.check_runs(scores)
    keys = patient_keys(named, _sites(scores)) if named else []
    import pipelines.table.erase

    def agreed(found: int, rows: int) -> bool:
        return yes or typer.confirm(f"erase {found} films, {rows} rows of {scores}, for good?", err=True)

    erased = pipelines.table.erase.erase(scores, patients=keys, uris=films, agreed=agreed, wait=patience)
    output.show(erased or "nothing was erased", as_json=json)


def patient_keys(lines: list[str], sites: list[str]) -> list[str]:
    """The keys of patients: a key as it is, a raw id hashed. Raises `InputError` for raw ids without the secret.

    `4711^^^HOSPITAL` is the number that this issuer gave out. A number alone is looked for at each of the sites, too,
    because the site stands for an issuer that the header does not name.
    """
    from pipelines.ingest.patients import PatientKeys

    raw = _require_secret(lines)
    keys = PatientKeys.from_environment() if raw else None
    found: list[str] = []
    for line in lines:
        number, _, issuer = line.partition("^^^")
        if keys is None or _KEY.fullmatch(line):
            found.append(line)
        else:
            found += [keys.key(number, at) for at in ([issuer] if issuer else ["", *sites])]
    return found


def _require_secret(lines: list[str]) -> list[str]:
    """The lines that are raw ids. Raises `InputError` if there are any, but no secret."""
    from pipelines.ingest.patients import SECRET_VARIABLE

    raw = [line for line in lines if not _KEY.fullmatch(line)]
    if raw and not os.environ.get(SECRET_VARIABLE):
        raise InputError(
            f"{len(raw)} of the patients are no patient keys; to find them by their raw ids set {SECRET_VARIABLE}"
            " to the secret of the catalogue"
        )
    return raw


def _sites(scores: str) -> list[str]:
    from pipelines.table.query import ask

    found = ask(scores, "SELECT DISTINCT site FROM scores WHERE site IS NOT NULL ORDER BY site")
    return [str(site) for site in found["site"].to_pylist()]


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
