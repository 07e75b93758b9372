"""The log of the table of scores, on any store: how it is opened, and how a version is added to it.

delta-rs works on folders of this machine only. The log of a remote store is copied into a temporary folder, from its
last checkpoint on; a version is made there, and its file is put into the store by a create-only put. So all requests go
through `pipelines/storage.py`, with its credentials and its retries, and stores whose S3 is not Amazon's work too:
delta-rs itself needs conditional puts, and ranges, which `rclone serve s3` answers with whole small objects.

A store with conditional put refuses the second of two files of one version, and whoever lost makes the next one. On
any other store one process at a time may commit (`lease.py`), and looks afterwards whether its commit is there.
"""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.messages import first_line
from pipelines.contracts import PARTITIONS, SCORES
from pipelines.errors import StorageError
from pipelines.storage import ObjectInfo, Store

if TYPE_CHECKING:
    from deltalake import CommitProperties
    from deltalake.transaction import AddAction, RemoveAction

    Action = AddAction | RemoveAction

FOLDER: Final = "scores"
"""The table, below the root of the scores."""
LOG: Final = f"{FOLDER}/_delta_log"
CONFIGURATION: Final = {
    "delta.checkpointInterval": "20",  # versions
    "delta.logRetentionDuration": "interval 3650 days",  # `query --as-of`, as far as the parts are kept
}
POINTER: Final = "_last_checkpoint"
FETCH_THREADS: Final = 16


class ScoresLog:
    """The log at the version that was the newest when it was opened."""

    def __init__(self, store: Store, folder: Path) -> None:
        from deltalake import DeltaTable  # noqa: PLC0415 (0.1 s, and mistakes are told before)

        self._store = store
        self._folder = folder
        with told(store):
            self.table = DeltaTable(str(folder))
            """delta-rs's view of it."""

    def write(self, actions: "Sequence[Action]", properties: "CommitProperties") -> bool:
        """Make the next version; returns False if another process made it first."""
        from deltalake import Schema  # noqa: PLC0415
        from deltalake.exceptions import CommitFailedError  # noqa: PLC0415

        before = set() if self._store.is_local else _files(self._folder)
        with told(self._store):
            try:
                self.table.create_write_transaction(
                    list(actions), "append", Schema.from_arrow(SCORES), list(PARTITIONS), commit_properties=properties
                )
            except CommitFailedError:
                return False
        return self._store.is_local or _publish(self._store, self._folder, _files(self._folder) - before)


def open_log(store: Store, *, whole: bool = False) -> ScoresLog | None:
    """The log of the table, or None if there is none. `whole`: with the versions before the last checkpoint.

    Raises `AccessError` or `StorageError` if the store fails or the log cannot be read.
    """
    if store.is_local:
        return ScoresLog(store, store.path / FOLDER) if (store.path / LOG).is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="rayscan-log-"))
    _copy(store, folder, whole=whole)
    if not _files(folder):
        shutil.rmtree(folder)
        return None
    log = ScoresLog(store, folder)
    weakref.finalize(log, shutil.rmtree, folder, ignore_errors=True)
    return log


def create_log(store: Store) -> None:
    """Make an empty table; does nothing if another process just made it. Raises as `open_log` does."""
    if store.is_local:
        _create(store, store.path / FOLDER)
        return
    with tempfile.TemporaryDirectory(prefix="rayscan-log-") as folder:
        _create(store, Path(folder))
        _publish(store, Path(folder), _files(Path(folder)))


@contextmanager
def told(store: Store) -> Iterator[None]:
    """Turn what delta-rs raises into `StorageError`."""
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415

    try:
        yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError) as error:
        raise StorageError(f"{store.uri(LOG)}: the log of the scores failed: {first_line(error)}") from error


def _create(store: Store, folder: Path) -> None:
    from deltalake import Schema  # noqa: PLC0415
    from deltalake.exceptions import DeltaError  # noqa: PLC0415
    from deltalake.transaction import create_table_with_add_actions  # noqa: PLC0415

    with told(store):
        try:
            create_table_with_add_actions(
                str(folder),
                Schema.from_arrow(SCORES),
                [],
                mode="error",
                partition_by=list(PARTITIONS),
                name="scores",
                configuration=dict(CONFIGURATION),
            )
        except DeltaError as error:
            if "already exists" not in str(error):
                raise


def _copy(store: Store, folder: Path, *, whole: bool) -> None:
    """Copy the log from its last checkpoint on, or all of it, with the times at which its versions were made."""
    log = folder / "_delta_log"
    log.mkdir()
    infos = {info.key.rpartition("/")[2]: info for chunk in store.list(LOG) for info in chunk}
    oldest = 0
    if POINTER in infos and not whole:
        oldest = json.loads(store.get(infos[POINTER].key))["version"]
    needed = [info for name, info in infos.items() if name == POINTER or int(name.partition(".")[0]) >= oldest]

    def fetch(info: ObjectInfo) -> None:
        file = log / info.key.rpartition("/")[2]
        file.write_bytes(store.get(info.key))
        os.utime(file, (info.modified.timestamp(), info.modified.timestamp()))  # `at` a time goes by it

    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        list(threads.map(fetch, needed))


def _files(folder: Path) -> set[tuple[str, int]]:
    """The files of a log, with the times at which they changed."""
    return {(file.name, file.stat().st_mtime_ns) for file in (folder / "_delta_log").glob("[!.]*")}


def _publish(store: Store, folder: Path, changed: set[tuple[str, int]]) -> bool:
    """Put the new files of a copy into the store; returns False if another process has made this version.

    The version first; a checkpoint before the pointer that names it.
    """
    order = {".json": 0, ".parquet": 1}
    for name in sorted((name for name, _ in changed), key=lambda name: order.get(Path(name).suffix, 2)):
        data = (folder / "_delta_log" / name).read_bytes()
        if not name.endswith(".json"):
            store.put(f"{LOG}/{name}", data)
        elif not store.create(f"{LOG}/{name}", data):
            return False
    return True
