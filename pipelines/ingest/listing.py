"""The candidate scans of an archive: all files below a root, streamed; none is opened, except containers.

Rows are Arrow from the first to the last: 1,000,000 Python dicts took 16 CPU-seconds and as many gigabytes as there
were labels. Only the scan_id is made row by row, in a tight loop over strings.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts import CATALOG, TIMESTAMP
from pipelines.decoding.members import COMPRESSED, CONTAINERS
from pipelines.ingest.containers import members
from pipelines.ingest.filters import Filters, glob_pattern
from pipelines.ingest.ignored import Ignored
from pipelines.ingest.objects import OBJECTS
from pipelines.ingest.walk import walk
from pipelines.stop import Stop, never
from pipelines.storage import ObjectInfo, Store

ROWS_PER_CHUNK = 20_000
HEAD_THREADS = 16
CONTAINER_THREADS = 8

_SUFFIXES: Final = {"jpeg": "jpe?g", "png": "png", "dicom": "dcm|dicom"}
_VERSION: Final = r"(;\d+)?$"
"""ISO 9660 writes the version of a file behind its name: `DICOMDIR;1`."""
_NEVER_SCANS: Final = "txt|csv|json|xml|html|md|parquet|zip|gz|tar|tgz|log|pdf|toml|yaml|ini|db|py"
_HIDDEN: Final = r"(^|/)\."
_OTHER: Final = rf"(?i)([^/]\.({_NEVER_SCANS})|(^|/)(DICOMDIR|README|LICENSE)){_VERSION}"
_HIDDEN_INSIDE: Final = r"!/(.*/)?\."
_AMBIGUOUS: Final = CONTAINERS.removesuffix("$") + "!/"
_MARKER: Final = "/$"


def list_archive(store: Store, stop: Stop | None = None) -> Iterator[pa.Table]:
    """The candidate scans of an archive as tables of contracts.CATALOG, streamed."""
    return iter(Listing(store, stop=stop))


class Listing:
    """The candidate scans below a root, in tables of contracts.CATALOG; counts what it ignores.

    Ignored are hidden files and a closed list of names that are never scans. Everything else is a candidate: DICOM
    exports often have no suffix, or end in a part of a UID that looks like one.
    """

    def __init__(
        self,
        store: Store,
        site: str | None = None,
        stop: Stop | None = None,
        filters: Filters | None = None,
    ) -> None:
        self.store = store
        self.stop = stop or never()
        self.site = site
        self.ignored = Ignored()
        self._filters = filters or Filters()
        self._earliest = self._filters.earliest(datetime.now(UTC))
        self.objects: Iterator[pa.RecordBatch] | None = None
        """OBJECTS of the store that are known from elsewhere, instead of a listing."""

    def __iter__(self) -> Iterator[pa.Table]:
        waiting: list[pa.RecordBatch] = []
        for batch in self.objects or walk(self.store, self.ignored, self.stop):
            self.stop.check()
            candidates = self._candidates(batch)
            if candidates.num_rows:
                waiting.append(candidates)
            if sum(part.num_rows for part in waiting) >= ROWS_PER_CHUNK:
                yield self._rows(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            yield self._rows(pa.Table.from_batches(waiting))

    def _candidates(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        for kind, pattern in (("folder_marker", _MARKER), ("hidden", _HIDDEN), ("ambiguous_name", _AMBIGUOUS)):
            batch = self._without(batch, kind, pc.match_substring_regex(batch["key"], pattern))
        is_container = pc.match_substring_regex(batch["key"], CONTAINERS)
        if not pc.any(is_container).as_py():
            return self._without_markers(self._wanted(batch))
        files = self._without_markers(self._wanted(batch.filter(pc.invert(is_container))))
        inside = self._wanted(self._inside(self._unexcluded(batch.filter(is_container))))
        return pa.concat_batches([files, inside])

    def _inside(self, containers: pa.RecordBatch) -> pa.RecordBatch:
        """The members of containers, several containers at a time."""

        def opened(row: dict[str, Any]) -> list[dict[str, Any]]:
            self.stop.check()
            return members(self.store.uri(row["key"]), ObjectInfo(**row), self.ignored)

        with ThreadPoolExecutor(CONTAINER_THREADS, thread_name_prefix="containers") as threads:
            rows = [row for found in threads.map(opened, containers.to_pylist()) for row in found]
        batch = pa.RecordBatch.from_pylist(rows, schema=OBJECTS)
        return self._without(batch, "hidden", pc.match_substring_regex(batch["key"], _HIDDEN_INSIDE))

    def _wanted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        other = pc.and_not(
            pc.match_substring_regex(batch["key"], _OTHER), pc.match_substring_regex(batch["key"], COMPRESSED)
        )
        batch = self._unexcluded(self._without(batch, "other_file", other))
        if self._filters.include:
            included = pc.match_substring_regex(batch["key"], _any_of(self._filters.include))
            batch = self._without(batch, "excluded", pc.invert(included))
        return batch

    def _unexcluded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._filters.exclude:
            batch = self._without(
                batch, "excluded", pc.match_substring_regex(batch["key"], _any_of(self._filters.exclude))
            )
        if self._earliest:
            batch = self._without(batch, "older", pc.less(batch["modified"], pa.scalar(self._earliest, TIMESTAMP)))
        return batch

    def _without(self, batch: pa.RecordBatch, kind: str, mask: Any) -> pa.RecordBatch:
        """The rows outside a mask; those inside are counted."""
        if not pc.any(mask).as_py():
            return batch
        named = batch["key"].filter(mask)
        self.ignored.add(kind, named[0].as_py(), len(named))
        return batch.filter(pc.invert(mask))

    def _without_markers(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Leave out the empty objects with which S3 consoles mark folders.

        Their keys end in "/", which the listing removes; an object without the slash does not exist.
        """
        if self.store.is_local or not pc.any(empty := pc.equal(batch["size"], 0)).as_py():
            return batch
        keys = batch["key"].filter(empty).to_pylist()
        with ThreadPoolExecutor(HEAD_THREADS) as threads:
            there = threads.map(self.store.exists, keys)
            markers = [key for key, exists in zip(keys, there, strict=True) if not exists]
        marked = pc.and_(empty, pc.is_in(batch["key"], pa.array(markers, pa.string())))
        return self._without(batch, "folder_marker", marked)

    def _rows(self, objects: pa.Table) -> pa.Table:
        uris = pc.binary_join_element_wise(pa.scalar(self.store.uri("x")[:-1]), objects["key"], "")
        known = {
            "scan_id": scan_ids(uris, objects["etag"]),
            "uri": uris,
            "etag": objects["etag"],
            "size": objects["size"],
            "modified": objects["modified"],
            "format": formats(objects["key"]),
            "site": pa.repeat(pa.scalar(self.site, pa.string()), objects.num_rows),
        }
        return catalog_rows(known)


def catalog_rows(known: dict[str, Any]) -> pa.Table:
    """Rows of contracts.CATALOG of which only some columns are known."""
    count = len(known["scan_id"])
    return pa.table(
        [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in CATALOG],
        schema=CATALOG,
    )


def scan_ids(uris: Any, etags: Any) -> pa.Array:
    """`contracts.scan_id` of many files, without a call for each."""
    return pa.array(
        [
            blake2b(f"{uri}\n{etag}".encode(), digest_size=16).hexdigest()
            for uri, etag in zip(uris.to_pylist(), etags.to_pylist(), strict=True)
        ],
        pa.string(),
    )


def formats(keys: Any) -> Any:
    """jpeg, png or dicom by the names; null where a name does not tell."""
    found = pa.nulls(len(keys), pa.string())
    for name, suffixes in _SUFFIXES.items():
        told = pc.match_substring_regex(keys, rf"(?i)[^/]\.({suffixes})(\.gz)?{_VERSION}")
        found = pc.if_else(told, name, found)
    return found


def _any_of(globs: tuple[str, ...]) -> str:
    return "|".join(f"(?:{glob_pattern(glob)})" for glob in globs)
