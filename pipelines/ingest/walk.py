"""The objects of an archive as Arrow batches (OBJECTS), whatever their names; nothing that is strange ends it.

Local disk is walked here and not by obstore, which ends at the first name that is not UTF-8, the first link that leads
in a circle and the first folder it may not read. Tasks of about BATCH files run in THREADS threads: on a network disk
the waits overlap. Etags are those that obstore gives, since `fetch` compares them.

`bucket.py` lists S3. Azure's containers are listed from the first key to the last by obstore.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from pipelines.errors import AccessError, NotFoundError
from pipelines.ingest.bucket import bucket_batches
from pipelines.ingest.ignored import Ignored
from pipelines.ingest.objects import OBJECTS, addressable, arrow_objects
from pipelines.stop import Stop
from pipelines.storage import Store

BATCH: Final = 16_384
THREADS: Final = 2
"""More of them take longer on a local disk: they wait for the interpreter, not for the disk."""


def walk(store: Store, ignored: Ignored, stop: Stop) -> Iterator[pa.RecordBatch]:
    """The objects of an archive as OBJECTS, in no order; what cannot be listed or addressed is counted in `ignored`.

    Raises `NotFoundError` for an absent root, `AccessError` for one that may not be read.
    """
    if store.is_local:
        return _Walk(store, ignored, stop).batches()
    if store.root.startswith("s3://"):
        return bucket_batches(store, ignored, stop)
    return _in_order(store, ignored, stop)


def _in_order(store: Store, ignored: Ignored, stop: Stop) -> Iterator[pa.RecordBatch]:
    """One listing from the first key to the last: a container of Azure's, of which boto3 knows nothing."""
    for batch in store.list_arrow():
        stop.check()
        yield addressable(arrow_objects(batch), ignored)


@dataclass(frozen=True)
class _Folder:
    path: str
    key: str
    """Of what is in it: the folders from the root, ending in "/"."""
    through: tuple[str, ...] = ()
    """The real folders of the links that led here."""


@dataclass
class _Columns:
    """Rows on their way into a batch."""

    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)
    modified: list[int] = field(default_factory=list)

    def add(self, key: str, status: os.stat_result) -> None:
        changed = status.st_mtime_ns // 1000
        self.keys.append(key)
        self.sizes.append(status.st_size)
        self.etags.append(f"{status.st_ino:x}-{changed:x}-{status.st_size:x}")
        self.modified.append(changed)

    def batch(self) -> pa.RecordBatch:
        arrays = [
            pa.array(values, field.type)
            for values, field in zip((self.keys, self.sizes, self.etags, self.modified), OBJECTS, strict=True)
        ]
        return pa.record_batch(arrays, schema=OBJECTS)


class _Walk:
    """Goes through the folders below a root, following links."""

    def __init__(self, store: Store, ignored: Ignored, stop: Stop) -> None:
        self.root = store.path
        self.ignored = ignored
        self.stop = stop

    def batches(self) -> Iterator[pa.RecordBatch]:
        if not self.root.is_dir():
            raise NotFoundError(f"{self.root}: no such folder")
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise AccessError(f"{self.root}: this folder may not be read; mend its rights")
        with ThreadPoolExecutor(THREADS, thread_name_prefix="walk") as threads:
            waiting = {threads.submit(self._some, [_Folder(str(self.root), "")])}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for task in done:
                        found, left = task.result()
                        idle = max(1, THREADS - len(waiting))
                        waiting |= {threads.submit(self._some, left[n::idle]) for n in range(min(idle, len(left)))}
                        yield from found
            finally:
                for task in waiting:
                    task.cancel()

    def _some(self, folders: list[_Folder]) -> tuple[list[pa.RecordBatch], list[_Folder]]:
        """About BATCH files of these folders and those below, and the folders that are left."""
        found: list[pa.RecordBatch] = []
        rows = _Columns()
        while folders and not found:
            self.stop.check()
            folder = folders.pop()
            try:
                with os.scandir(folder.path) as entries:
                    for entry in entries:
                        self._take(entry, folder, rows, folders)
                        if len(rows.keys) == BATCH:
                            found.append(rows.batch())
                            rows = _Columns()
            except FileNotFoundError:
                continue  # removed meanwhile: nothing is in it
            except OSError:
                self.ignored.add("unreadable_folder", folder.key)
        return [addressable(batch, self.ignored) for batch in [*found, rows.batch()] if batch.num_rows], folders

    def _take(self, entry: os.DirEntry[str], folder: _Folder, rows: _Columns, folders: list[_Folder]) -> None:
        key = folder.key + entry.name
        if not entry.name.isascii() and not _is_text(entry.name):
            self.ignored.add("not_utf8", key)
            return
        try:
            if entry.is_dir():
                below = self._below(entry, folder, key)
                if below:
                    folders.append(below)
                return
            status = entry.stat()
        except FileNotFoundError:
            self.ignored.add("broken_link", key)
            return
        except OSError:
            self.ignored.add("link_loop" if entry.is_symlink() else "unreadable_folder", key)
            return
        if stat.S_ISREG(status.st_mode):
            rows.add(key, status)
        else:
            self.ignored.add("broken_link" if stat.S_ISLNK(status.st_mode) else "not_a_file", key)

    def _below(self, entry: os.DirEntry[str], folder: _Folder, key: str) -> _Folder | None:
        if not entry.is_symlink():
            return _Folder(entry.path, f"{key}/", folder.through)
        target, own = os.path.realpath(entry.path), os.path.realpath(folder.path)
        if any(f"{real}/".startswith(f"{target.rstrip('/')}/") for real in (own, *folder.through)):
            self.ignored.add("link_loop", key)
            return None
        return _Folder(entry.path, f"{key}/", (*folder.through, own))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
