"""What can be the Optuna storage of a mirror. Imports nothing heavy: it is checked before Ray starts."""

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from models.errors import InputError

JOURNALS: Final = (".log", ".journal")
"""Endings of the names of Optuna journal files."""
DATABASES: Final = ("postgresql", "mysql", "sqlite")
FORMS: Final = (
    "give a journal file (NAME.log or NAME.journal), postgresql://USER@HOST/DATABASE, mysql://USER@HOST/DATABASE or"
    " sqlite:///FILE"
)
_PASSWORDS: Final = {"password", "passwd"}
_WITH_PASSWORD: Final = re.compile(r"[\w+]+://[^:/?@]*:[^@]*@")


def is_journal(storage: str) -> bool:
    """Whether this names a journal file."""
    return "://" not in storage and storage.endswith(JOURNALS)


def check_storage(storage: str) -> None:
    """Raise `InputError` unless this is a journal file or the URL of a database that can be used.

    The message quotes nothing of a text that cannot be parsed: it may hold a password anywhere.
    """
    if is_journal(storage):
        return
    scheme, separator, _ = storage.partition("://")
    if not separator:
        raise no_url()
    if storage.count("@") > 1:
        raise InputError("the Optuna storage's URL has more than one @; write one in a user or password as %40")
    backend = scheme.partition("+")[0]
    if backend not in DATABASES:
        raise no_database(backend) if backend.isalnum() else no_url()


def refuse_password(storage: str) -> str:
    """The storage itself. Raises `InputError` where it holds a password; the message quotes nothing.

    A command line can be read by everyone on the machine, and by everyone who may ask the cluster for its jobs.
    """
    try:
        parts = urlsplit(storage)
        # SQLAlchemy takes a password with a slash, at which urlsplit ends the part that may have one
        found = (
            bool(_WITH_PASSWORD.match(storage))
            or parts.password is not None
            or bool(_PASSWORDS & {name.lower() for name, _ in parse_qsl(parts.query)})
        )
    except ValueError as error:
        raise no_url() from error
    if found:
        raise InputError(
            "the Optuna storage's URL holds a password, which others can read on the command line and in the cluster's"
            " list of jobs; leave it out, and put it into ~/.pgpass or PGPASSWORD (PostgreSQL), or into the file that"
            " ?read_default_file=FILE names (MySQL), on the machine that runs the search"
        )
    return storage


def no_url() -> InputError:
    """The error for a text that is neither a file nor a URL."""
    return InputError(f"the Optuna storage is neither a journal file nor a database's URL; {FORMS}")


def no_database(backend: str) -> InputError:
    """The error for a scheme that no mirror can use."""
    return InputError(f"{backend}:// is no Optuna storage that people can look at; {FORMS}")
