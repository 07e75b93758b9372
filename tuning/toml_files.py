"""Recipes and search spaces as TOML: those that come with rayscan, by name, and a person's own, by path.

Imports nothing heavy: a name that is misspelt, or a file that is not there, is told before torch is loaded.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import InputError
from models.messages import did_you_mean

Kind = Literal["recipe", "space"]

HUB: Final = "imagenet"
"""Stands for the weights that timm publishes, where a file of weights is asked for."""
NO_WEIGHTS: Final = "none"
NEEDED: Final = "needed"
"""Of a recipe: who follows it must name weights."""
_WORDS: Final = {HUB, NO_WEIGHTS, NEEDED}


def names(kind: Kind) -> list[str]:
    """Those that come with rayscan."""
    entries = files("tuning").joinpath(f"{kind}s").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def read_toml(kind: Kind, source: str) -> dict[str, Any]:
    """What the one of this name, or the file `*.toml` at this path, says. Raises `InputError` for what is none."""
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


def folder_of(source: str) -> Path:
    """Where relative paths begin that stand in this recipe or space: at its file's folder."""
    return Path(source).expanduser().absolute().parent


def absolute(weights: str, folder: Path | None = None) -> str:
    """A path of weights that means the same from another folder; a URI, or a word that stands for some, as it is.

    A relative one is of `folder`, by default the one this process stands in.
    """
    if weights in _WORDS or "://" in weights:
        return weights
    return str((folder or Path()).joinpath(Path(weights).expanduser()).absolute())
