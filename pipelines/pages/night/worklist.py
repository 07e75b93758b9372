"""The worklist: the films of a run with the highest probabilities, and a small picture of each if asked for.

A thumbnail is an image of a patient, so a page has them only on request; it is read from the archive again, by the URI
and version that were scored.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import duckdb

from models.spec import Preprocessing
from pipelines.contracts import LABELS
from pipelines.decoding.decode import decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import ScanError
from pipelines.pages.frame import data_uri

LENGTH: Final = 25
SIDE: Final = 160
"""Side of a thumbnail in pixels."""
_THREADS: Final = 4
"""Scans held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class WorklistFilm:
    """One film of the worklist."""

    uri: str
    etag: str
    site: str | None
    study_date: date | None
    probability: float
    positive: bool
    thumbnail: str | None = None
    """A JPEG as a data URI."""
    map: str | None = None
    """The same picture with the model's map over it."""
    unseen: str | None = None
    """Why there is no thumbnail although one was asked for: a `contracts.Reason`."""


def worklist(connection: duckdb.DuckDBPyConnection, run_id: str, most: int) -> list[WorklistFilm]:
    """The `most` films of a run with the highest probabilities, the highest first."""
    rows = connection.execute(
        "SELECT uri, etag, site, study_date, probability, coalesce(prediction = ?, false) FROM scores"
        " WHERE run_id = ? AND status = 'scored' ORDER BY probability DESC, uri LIMIT ?",
        [LABELS[1], run_id, most],
    ).fetchall()
    return [
        WorklistFilm(uri=uri, etag=etag, site=site, study_date=study_date, probability=probability, positive=positive)
        for uri, etag, site, study_date, probability, positive in rows
    ]


def with_thumbnails(films: Sequence[WorklistFilm]) -> list[WorklistFilm]:
    """The same films, each with its thumbnail or the reason it has none."""
    if not films:
        return []
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_with_thumbnail, films))


def _with_thumbnail(film: WorklistFilm) -> WorklistFilm:
    try:
        scan = decode(fetch(film.uri, film.etag), Preprocessing(size=SIDE))
    except ScanError as error:
        return replace(film, unseen=error.reason.value)
    return replace(film, thumbnail=data_uri(scan.pixels))
