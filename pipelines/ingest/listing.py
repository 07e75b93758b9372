"""The candidate scans of an archive: all files below a root, streamed; none is opened."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipelines.contracts import CATALOG, scan_id
from pipelines.errors import InputError
from pipelines.stop import Stop, never
from pipelines.storage import ObjectInfo, Store

ROWS_PER_CHUNK = 20_000
HEAD_THREADS = 16

_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".dcm": "dicom", ".dicom": "dicom"}
_NEVER_SCANS = {".txt", ".csv", ".json", ".xml", ".html", ".md", ".parquet", ".zip", ".gz", ".tar", ".log", ".pdf",
                ".toml", ".yaml", ".ini", ".db", ".py"}  # fmt: skip
_NEVER_NAMES = {"DICOMDIR", "README", "LICENSE"}

Row = dict[str, Any]


def list_archive(store: Store, stop: Stop | None = None) -> Iterator[pa.Table]:
    """The candidate scans of an archive as tables of contracts.CATALOG, streamed."""
    for rows in Listing(store, stop=stop):
        yield pa.Table.from_pylist(rows, schema=CATALOG)


class Listing:
    """The candidate scans below a root, in chunks of rows; counts the files it ignores.

    Ignored are hidden files and a closed list of names that are never scans. Everything else is a candidate: DICOM
    exports often have no suffix, or end in a part of a UID that looks like one.
    """

    def __init__(self, store: Store, site: str | None = None, stop: Stop | None = None) -> None:
        self.store = store
        self.stop = stop or never()
        self.site = site
        self.ignored = 0

    def __iter__(self) -> Iterator[list[Row]]:
        rows: list[Row] = []
        for chunk in self._listed():
            candidates = [info for info in chunk if self._is_candidate(info.key)]
            rows += [self._row(info) for info in self._without_markers(candidates)]
            if len(rows) >= ROWS_PER_CHUNK:
                yield rows
                rows = []
        if rows:
            yield rows

    def _listed(self) -> Iterator[list[ObjectInfo]]:
        try:
            for chunk in self.store.list():
                self.stop.check()
                yield chunk
        except InputError as error:
            # obstore can neither list nor fetch a key with an empty, "." or ".." segment, and abandons the listing.
            if "invalid path" not in str(error):
                raise
            raise InputError(
                f"{error}; rename or remove that object, or name a folder beside it as the archive"
            ) from error

    def _is_candidate(self, key: str) -> bool:
        path = PurePosixPath(key)
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or path.suffix.lower() in _NEVER_SCANS or path.name.upper() in _NEVER_NAMES:
            self.ignored += 1
            return False
        return True

    def _without_markers(self, candidates: list[ObjectInfo]) -> list[ObjectInfo]:
        """Leave out the empty objects with which S3 consoles mark folders.

        Their keys end in "/", which the listing removes; an object without the slash does not exist.
        """
        empty = [] if self.store.is_local else [info for info in candidates if info.size == 0]
        if not empty:
            return candidates
        with ThreadPoolExecutor(HEAD_THREADS) as threads:
            there = threads.map(lambda info: self.store.exists(info.key), empty)
            markers = {info.key for info, exists in zip(empty, there, strict=True) if not exists}
        self.ignored += len(markers)
        return [info for info in candidates if info.key not in markers]

    def _row(self, info: ObjectInfo) -> Row:
        uri = self.store.uri(info.key)
        return {
            **dict.fromkeys(CATALOG.names),
            "scan_id": scan_id(uri, info.etag),
            "uri": uri,
            "etag": info.etag,
            "size": info.size,
            "modified": info.modified,
            "format": _FORMATS.get(PurePosixPath(info.key).suffix.lower()),
            "site": self.site,
        }
