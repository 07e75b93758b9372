"""Where an option's value comes from: the flag, else the job file, else the default in the package's own settings.

A job file is TOML with one table per verb, its keys named like the flags:

    [score]
    archive = "s3://hospital/scans"
    model = "s3://models/pneumonia"
    out = "s3://hospital/scores"

One file can hold the settings of every verb; each reads its own table. Unknown keys are errors: a misspelt setting that
is silently ignored costs a night.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.messages import did_you_mean

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?")
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?")


def job_defaults(path: Path, verb: str, known: Iterable[str]) -> dict[str, Any]:
    """The values a job file holds for one verb, by parameter name.

    Raises `InputError` when the file is absent, is not TOML, or holds a key the verb does not know.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such job file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    table = tables.get(verb, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}: [{verb}] must be a table, as in\n[{verb}]\nkey = value")
    known = set(known)
    values = {key.replace("-", "_"): value for key, value in table.items()}
    for key in values.keys() - known:
        hint = did_you_mean(key, known) or f"known are {', '.join(sorted(known))}"
        raise InputError(f"{path}: [{verb}] has an unknown key {key!r}; {hint}")
    return values


def seconds(text: str) -> float:
    """A duration such as `90`, `90s`, `30m`, `1h30m` or `7d`, in seconds. Raises `InputError`."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        raise InputError(f"{text!r} is not a duration; write 90s, 30m, 1h30m or 7d")
    days, hours, minutes, rest = (int(group or 0) for group in match.groups())
    return float(86_400 * days + 3600 * hours + 60 * minutes + rest)


def size(text: str) -> int:
    """A size such as `2GiB`, `512M` or `1.5GB`, in bytes; without the i, in thousands. Raises `InputError`."""
    match = _SIZE.fullmatch(text.strip().lower())
    if not match:
        raise InputError(f"{text!r} is not a size; write 2GiB or 512MiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))
