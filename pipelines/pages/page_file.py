"""A page as a file: where it may be written, and how many thumbnails it may hold.

A module of its own because it imports nothing heavy: `cluster/preflight.py` refuses a bad `--out` or `--thumbnails`
before Ray, torch or matplotlib is loaded.
"""

from typing import Final

from pipelines.errors import InputError
from pipelines.storage import Store, file_place

MOST_THUMBNAILS: Final = 100


def put_page(html: str, out: str) -> str:
    """Write a page to a local path or a URI, whole or not at all; returns its URI.

    Raises `InputError` when `out` names a folder or a bucket instead of a file.
    """
    store, name = page_place(out)
    store.put(name, html.encode())
    return store.uri(name)


def page_place(out: str) -> tuple[Store, str]:
    """The store and the key of a page. Raises `InputError` when `out` is a folder or a bucket."""
    return file_place(out, "a report", "report.html")


def check_thumbnails(number: int) -> None:
    """Raise `InputError` for a number of thumbnails out of range."""
    if not 0 <= number <= MOST_THUMBNAILS:
        raise InputError(f"{number} thumbnails are out of range; choose 0 to {MOST_THUMBNAILS}")
