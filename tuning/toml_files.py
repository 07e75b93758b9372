"""Recipes and search spaces as TOML: those that come with rayscan, by name, and a person's own, by path.

Imports nothing heavy: a misspelt name or a missing file is reported before torch is loaded.
"""

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import InputError
from models.intended_use import IntendedUse, state
from models.messages import did_you_mean

Kind = Literal["recipe", "space"]

HUB: Final = "imagenet"
"""Stands for the weights that timm publishes, in place of a file of weights."""
NO_WEIGHTS: Final = "none"
NEEDED: Final = "needed"
"""In a recipe: whoever follows it must name weights."""
_WORDS: Final = {HUB, NO_WEIGHTS, NEEDED}


def names(kind: Kind) -> list[str]:
    """The names of those that come with rayscan, sorted."""
    entries = files("tuning").joinpath(f"{kind}s").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def read_toml(kind: Kind, source: str) -> dict[str, Any]:
    """The table of the recipe or space of this name, or of the file `*.toml` at this path.

    Raises `InputError` for an unknown name, and for a file that is missing or not TOML.
    """
    own = source.endswith(".toml")
    known = names(kind)
    if not own and source not in known:
        hint = did_you_mean(source, known) or f"choose {', '.join(known)}, or a .toml file"
        raise InputError(f"there is no {kind} {source!r}; {hint}")
    path = Path(source).expanduser() if own else files("tuning").joinpath(f"{kind}s", f"{source}.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such {kind} file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{source}: not a {kind}: {error}") from error


def read_intended_use(path: str) -> IntendedUse:
    """What a person states in a TOML file of a model's intended use. Raises `InputError` for a file that holds none."""
    try:
        return state(tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8")))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of an intended use") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not an intended use: {error}") from error


def folder_of(source: str) -> Path:
    """The folder of a recipe's or space's file, which relative paths in it start from."""
    return Path(source).expanduser().absolute().parent


def absolute(weights: str, folder: Path | None = None) -> str:
    """A path of weights as an absolute path; a URI, or a word that stands for weights, unchanged.

    A relative path starts from `folder`, by default the current one.
    """
    if weights in _WORDS or "://" in weights:
        return weights
    return str((folder or Path()).joinpath(Path(weights).expanduser()).absolute())


def toml_value(value: Any) -> str:
    """A string, number, truth value, list or table (inline) as TOML, which Python reads but does not write."""
    if isinstance(value, dict):
        return f"{{ {', '.join(toml_lines(value))} }}"
    # TOML's scalars and lists are those of JSON, but for the delete character: TOML allows it only as an escape
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def toml_lines(table: dict[str, Any]) -> list[str]:
    """A line for each key; keys are rayscan's own names, which need no quotes."""
    return [f"{name} = {toml_value(value)}" for name, value in table.items()]
