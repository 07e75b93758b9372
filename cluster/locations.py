"""Where a path on the command line lies, said so that it means the same in another folder: Ray's workers stand in one.

A verb's options that name a folder, a file or a URI have one of these functions as their `parser`, so flags and job
files are treated alike: a relative path is one of the folder the command was typed in.
"""

import os
from pathlib import Path

import typer


def location(text: str) -> str:
    """A local path or `file://` made absolute, `~` filled in; a URI of another scheme as it is.

    A slash at the end stays: it says that a folder is meant. Raises `typer.BadParameter` for an empty text, as an unset
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
    """The same of pretrained weights, where `imagenet` stands for those that timm publishes."""
    return text if text == "imagenet" else location(text)


def labels_location(text: str) -> str:
    """The same of labels, where `path` stands for the names of the films' folders."""
    return text if text == "path" else location(text)


def named_or_file(text: str) -> str:
    """The same of a recipe or space where it is a file, `*.toml`; a name as it is."""
    return location(text) if text.endswith(".toml") else text


def mirror_location(text: str) -> str:
    """The same of a journal file; the URL of a database as it is. An empty text is left to who reads it."""
    return location(text) if text and "://" not in text else text


def study_or_models(text: str) -> str:
    """The same of a study; two model ids with a comma between them as they are."""
    return text if "," in text and "/" not in text else location(text)
