"""Paths of the command line made absolute, so that Ray's workers, which run in other folders, find the same files.

A verb's options that name a folder, a file or a URI have one of these functions as their `parser`, so flags and job
files are treated alike: a relative path starts at the folder the command was typed in.
"""

import os
from pathlib import Path

import typer

from models.errors import InputError
from tuning.search.mirror_place import refuse_password


def location(text: str) -> str:
    """A local path or `file://` made absolute, `~` filled in; a URI of another scheme as it is.

    A trailing slash stays: it marks a folder. Raises `typer.BadParameter` for an empty text, as an unset
    variable of a shell leaves it.
    """
    text = str(text)  # a job file may hold a number
    if not text.strip():
        raise typer.BadParameter("it is empty; name a folder, a file or a URI")
    scheme, separator, rest = text.rpartition("file://") if text.startswith("file://") else ("", "", text)
    if "://" in rest:
        return text
    path = Path(os.path.expanduser(rest)).absolute()
    slash = "/" if rest.endswith("/") and path != Path("/") else ""
    return f"{scheme}{separator}{path}{slash}"


def weights_location(text: str) -> str:
    """`location` for pretrained weights, where `imagenet` stands for those that timm publishes."""
    return text if text == "imagenet" else location(text)


def model_location(text: str) -> str:
    """`location` for a bundle; `production`, `shadow` and `candidate` stand for the model that has this role."""
    return text if text in {"production", "shadow", "candidate"} else location(text)


def labels_location(text: str) -> str:
    """`location` for labels, where `path` stands for the names of the films' folders."""
    return text if text == "path" else location(text)


def named_or_file(text: str) -> str:
    """`location` for a recipe or space that is a file, `*.toml`; a name is left as it is."""
    return location(text) if text.endswith(".toml") else text


def mirror_location(text: str) -> str:
    """`location` for a journal file; the URL of a database, and an empty text, are left as they are.

    Raises `typer.BadParameter` for a URL that holds a password.
    """
    if not text or "://" in text:
        try:
            return refuse_password(text)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
    return location(text)


def study_or_models(text: str) -> str:
    """`location` for a study; two model ids with a comma between them are left as they are."""
    return text if "," in text and "/" not in text else location(text)
