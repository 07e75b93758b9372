"""What an archive holds: the candidate scans below a root, streamed, nothing opened."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipelines.contracts import CATALOG, scan_id
from pipelines.storage import ObjectInfo, Store

ROWS_PER_CHUNK = 20_000

_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".dcm": "dicom", ".dicom": "dicom"}
_NEVER_SCANS = {".txt", ".csv", ".json", ".xml", ".html", ".md", ".parquet", ".zip", ".gz", ".tar", ".log", ".pdf",
                ".toml", ".yaml", ".ini", ".db", ".py"}  # fmt: skip
_NEVER_NAMES = {"DICOMDIR", "README", "LICENSE"}

Row = dict[str, Any]


def list_archive(store: Store) -> Iterator[pa.Table]:
    """The candidate scans of an archive as tables of contracts.CATALOG, streamed. Nothing is opened."""
    for rows in Listing(store):
        yield pa.Table.from_pylist(rows, schema=CATALOG)


class Listing:
    """The candidate scans below a root, in chunks of rows; counts what it leaves out.

    Left out are hidden files and a closed list of names that are never scans. Everything else is a candidate: DICOM
    exports often have no suffix, or a UID that looks like one.
    """

    def __init__(self, store: Store, site: str | None = None) -> None:
        self.store = store
        self.site = site
        self.ignored = 0

    def __iter__(self) -> Iterator[list[Row]]:
        rows: list[Row] = []
        for chunk in self.store.list():
            rows += [self._row(info) for info in chunk if self._is_candidate(info.key)]
            if len(rows) >= ROWS_PER_CHUNK:
                yield rows
                rows = []
        if rows:
            yield rows

    def _is_candidate(self, key: str) -> bool:
        path = PurePosixPath(key)
        hidden = any(part.startswith(".") for part in path.parts)
        if hidden or path.suffix.lower() in _NEVER_SCANS or path.name.upper() in _NEVER_NAMES:
            self.ignored += 1
            return False
        return True

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
