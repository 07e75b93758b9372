"""The table of scores: a Delta Lake table, which Spark, Trino, Athena, pandas, Polars and DuckDB read as it is.

    SCORES/scores/_delta_log/…                                              which parts belong to the table, by version
    SCORES/scores/model_id=<id>/date=<YYYY-MM-DD>/<run_id>-<shard>.parquet  parts, written by the actors of a run
    SCORES/scores/model_id=<id>/date=<YYYY-MM-DD>/merged-<random>.parquet   parts, written by `compact`

A part is written before it is committed, and until then nobody sees it. `commit` adds parts of a run in a transaction
of that run (an application transaction of the Delta protocol,
https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Transaction Identifiers"). Its number is one more than the
last, so of two drivers that commit to one run at the same time one fails, looks again and finds the parts of the other.
`replace` takes the highest number for the runs whose parts it removes: nothing is added to them any more.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pyarrow as pa

from models.messages import first_line
from pipelines.errors import IncompleteError, InputError, StorageError
from pipelines.storage import Store
from pipelines.table.delta_log import FOLDER, LOG, ScoresLog, create_log, open_log

if TYPE_CHECKING:
    from deltalake.transaction import AddAction, RemoveAction

ATTEMPTS: Final = 10
"""Commits that lost a race, in a row, before giving up."""
MERGED: Final = "merged-"
FINISHED: Final = 2**62
"""Number of a run's last transaction."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file of the table, or one to commit to it."""

    key: str
    """Relative to the root of the scores: `scores/model_id=…/date=…/….parquet`."""
    size: int
    """Bytes."""
    rows: int
    model_id: str
    date: date

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.key.rpartition("/")[2]

    @property
    def run_id(self) -> str:
        """The run that wrote it; empty for one made by `compact`, which may hold rows of several."""
        return "" if self.name.startswith(MERGED) else self.name.rpartition("-")[0]


def part_folder(model_id: str, day: str) -> str:
    """The folder of the parts of a model and a day (YYYY-MM-DD)."""
    return f"{FOLDER}/model_id={model_id}/date={day}"


class ScoresTable:
    """The table at one version; `commit` and `replace` make a new one, `latest` sees it."""

    def __init__(self, store: Store, log: ScoresLog, *, conditional: bool) -> None:
        self.store = store
        self._log = log
        self._conditional = conditional

    @property
    def version(self) -> int:
        """Grows by one with each commit."""
        return int(self._log.table.version())

    def latest(self) -> "ScoresTable":
        """The newest version."""
        table = open_table(self.store, conditional=self._conditional)
        if table is None:
            raise StorageError(f"{self.store.root}: the table of scores has vanished; restore {LOG} from a copy")
        return table

    def parts(self, model_id: str | None = None) -> list[Part]:
        """The parts of this version, of all models or one, by key."""
        # `pa.table` would import pandas first, 0.3 s, to see whether this is one of its frames.
        actions = pa.RecordBatchReader.from_stream(self._log.table.get_add_actions(flatten=True)).read_all()
        if not actions.num_rows:
            return []
        parts = [
            Part(
                key=f"{FOLDER}/{unquote(row['path'])}",
                size=row["size_bytes"],
                rows=row["num_records"],
                model_id=row["partition.model_id"],
                date=row["partition.date"],
            )
            for row in actions.select(_ADDED).to_pylist()
            if model_id in (None, row["partition.model_id"])
        ]
        return sorted(parts, key=lambda part: part.key)

    def at(self, when: int | datetime) -> "ScoresTable":
        """The table as it was: a version, or the last one before a time. Raises `InputError` if there is none."""
        log = open_log(self.store, whole=True)
        assert log
        try:
            log.table.load_as_version(when)
        except Exception as error:  # delta-rs raises several types for it
            raise InputError(f"{self.store.root}: no version {when} of the scores: {first_line(error)}") from error
        return ScoresTable(self.store, log, conditional=self._conditional)

    def history(self) -> list[dict[str, Any]]:
        """Each version, newest first: `version`, `at` (UTC) and what its commit said: `operation`, `run_id`, `rows`."""
        log = open_log(self.store, whole=True)
        assert log
        told = [(entry, json.loads(entry.get("rayscan") or "{}")) for entry in log.table.history()]
        return [
            {
                "version": entry["version"],
                "at": datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
                "operation": said.get("operation") or entry["operation"].lower(),
                "run_id": said.get("run_id"),
                "rows": said.get("rows"),
            }
            for entry, said in told
        ]

    def run_parts(self, run_id: str, model_id: str) -> dict[int, Part]:
        """The parts that a run wrote and that are in the table, by shard."""
        names = re.compile(rf"{re.escape(run_id)}-(\d+)\.parquet")
        return {int(match[1]): part for part in self.parts(model_id) if (match := names.fullmatch(part.name))}

    def commit(self, parts: Sequence[Part], run_id: str) -> None:
        """Add parts of a run; those that are in the table already are left out, so a repetition does nothing.

        Raises `IncompleteError` if another process has finished the run, `StorageError` if the store fails.
        """
        for _ in range(ATTEMPTS):
            now = self.latest()
            there = {(part.key, part.size) for part in now.parts()}
            new = [part for part in parts if (part.key, part.size) not in there]
            if not new:
                return
            operation = {"operation": "score", "run_id": run_id, "rows": sum(part.rows for part in new)}
            # Without conditional put a commit can be lost: the next round looks whether the parts are there.
            if now._commit([_added(part) for part in new], operation, now._transaction(run_id)) and self._conditional:
                return
        raise self._lost()

    def replace(
        self, old: Sequence[Part], new: Sequence[Part], operation: Mapping[str, Any], *, finished: Iterable[str]
    ) -> None:
        """Put parts in place of others, in one version; `operation` is told in the history.

        To the runs `finished` nothing can be added any more: a process of one of them that was thought dead would not
        find its parts in the table and would add them again. Raises `StorageError` if one of the old parts has left the
        table meanwhile, or the store fails.
        """
        keys = {part.key for part in new} or {part.key for part in old}
        for _ in range(ATTEMPTS):
            now = self.latest()
            there = {part.key for part in now.parts()}
            if (keys <= there) if new else not (keys & there):
                return
            if not {part.key for part in old} <= there:
                raise StorageError(f"{self.store.root}: another process changed these parts of the scores; run again")
            actions: list[AddAction | RemoveAction] = [_removed(part) for part in old]
            actions += [_added(part, is_new=False) for part in new]
            if now._commit(actions, operation, *((run, FINISHED) for run in finished)) and self._conditional:
                return
        raise self._lost()

    def unused(self, keep: timedelta) -> list[str]:
        """Keys of files that left the table, or never came into it, longer ago than this."""
        kept = {part.key for part in self.parts()}
        infos = [info for chunk in self.store.list(FOLDER) for info in chunk if not info.key.startswith(f"{FOLDER}/_")]
        if keep:
            since = self.store.clock() - keep
            infos = [info for info in infos if info.modified < since]
            with suppress(InputError):  # the table is younger than that
                kept |= {part.key for part in self.at(since).parts()}
        return [info.key for info in infos if info.key not in kept]

    def _last(self, run_id: str) -> int:
        return int(self._log.table.transaction_version(run_id) or 0)

    def _transaction(self, run_id: str) -> tuple[str, int]:
        last = self._last(run_id)
        if last == FINISHED:
            raise IncompleteError(f"{self.store.root}: another process has finished run {run_id}")
        return run_id, last + 1

    def _commit(
        self,
        actions: "Sequence[AddAction | RemoveAction]",
        operation: Mapping[str, Any],
        *numbered: tuple[str, int],
    ) -> bool:
        """Make the next version; returns False if another process made it first."""
        from deltalake import CommitProperties, Transaction  # noqa: PLC0415

        properties = CommitProperties(
            custom_metadata={"rayscan": json.dumps(dict(operation))},
            app_transactions=[Transaction(*each) for each in numbered],
        )
        return self._log.write(actions, properties)

    def _lost(self) -> StorageError:
        return StorageError(f"{self.store.root}: {ATTEMPTS} commits in a row were lost; run the same command again")


def open_table(store: Store, *, conditional: bool = True) -> ScoresTable | None:
    """The newest version of the table, or None if there is none yet.

    `conditional` is whether the store has conditional puts; it matters to those who commit.
    Raises `AccessError` or `StorageError` if the store fails.
    """
    log = open_log(store)
    return None if log is None else ScoresTable(store, log, conditional=conditional)


def create_table(store: Store, *, conditional: bool) -> ScoresTable:
    """The newest version of the table; makes an empty one first if there is none."""
    table = open_table(store, conditional=conditional)
    if table is None:
        store.require_writable()
        create_log(store)
        table = open_table(store, conditional=conditional)
    assert table
    return table


def _added(part: Part, *, is_new: bool = True) -> "AddAction":
    from deltalake.transaction import AddAction  # noqa: PLC0415

    return AddAction(
        part.key.removeprefix(f"{FOLDER}/"),
        part.size,
        {"model_id": part.model_id, "date": f"{part.date}"},
        _milliseconds(),
        is_new,
        json.dumps({"numRecords": part.rows}),
    )


def _removed(part: Part) -> "RemoveAction":
    from deltalake.transaction import RemoveAction  # noqa: PLC0415

    return RemoveAction(
        part.key.removeprefix(f"{FOLDER}/"),
        False,
        _milliseconds(),
        part.size,
        {"model_id": part.model_id, "date": f"{part.date}"},
    )


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


_ADDED: Final = ["path", "size_bytes", "num_records", "partition.model_id", "partition.date"]
