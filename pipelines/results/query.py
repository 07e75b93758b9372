"""SQL over the scores, by DuckDB, wherever they lie.

Views:

    scores   every row of every run
    latest   one row per uri: the newest that is not `failed`, else the newest
    rejects  the rows of `latest` without a probability, and why
    runs     one row per run, from its run.json; a run without one shows as `unfinished`

Local parts are read where they lie. Remote parts never change once written, so they are mirrored into the local cache
(readable by its owner only) and DuckDB reads the files: the second question fetches only what is new.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.bundles import cache_folder
from pipelines.contracts import SCORES
from pipelines.errors import InputError
from pipelines.storage import ObjectInfo, Store, open_store

FETCH_THREADS = 16

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("state", pa.string()),  # finished, unfinished
        pa.field("model_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("date", pa.string()),
        *[pa.field(name, pa.int64()) for name in ("planned", "scored", "rejected", "unreadable", "failed")],
        pa.field("seconds", pa.float64()),
    ]
)

_VIEWS = {
    "latest": """
        SELECT * FROM scores
        QUALIFY row_number() OVER (PARTITION BY uri ORDER BY status = 'failed', scored_at DESC, run_id DESC) = 1
    """,
    "rejects": "SELECT * FROM latest WHERE status <> 'scored'",
}


def open_scores(uri: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views above. Raises `InputError` when nothing was ever scored there."""
    store = open_store(uri)
    objects = [info for chunk in store.list() for info in chunk]
    runs = _runs_table(store, [info.key for info in objects])
    if runs.num_rows == 0:
        raise InputError(f"{store.root}: no run was recorded here; score into it first, or check the path")
    connection = duckdb.connect()
    connection.register("runs_table", runs)
    connection.execute("CREATE VIEW runs AS SELECT * FROM runs_table ORDER BY run_id")
    create_scores_view(connection, local_parts(store, objects))
    for name, sql in _VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    return connection


SUMMARY = """
    SELECT model_id, status, coalesce(reason, '') AS reason, count(*) AS scans,
           count(*) FILTER (WHERE prediction = 'PNEUMONIA') AS positive
    FROM latest GROUP BY ALL ORDER BY model_id, scans DESC, status, reason
"""
"""What `ask` asks when it is asked nothing."""


def ask(uri: str, sql: str | None = None) -> pa.Table:
    """The answer to one SQL question to the scores at a URI. Raises `InputError` for a question DuckDB refuses."""
    with open_scores(uri) as connection:
        try:
            return connection.sql(sql or SUMMARY).to_arrow_table()
        except duckdb.Error as error:
            raise InputError(f"the question cannot be answered: {error}") from error


def is_scores(uri: str) -> bool:
    """Whether scores lie at this URI."""
    store = open_store(uri)
    if store.is_local and not (store.path / "runs").is_dir():
        return False
    return any(chunk for chunk in store.list("runs"))


def local_parts(store: Store, objects: Iterable[ObjectInfo]) -> list[Path]:
    """Local files of the parts among these objects of a scores store; remote ones are fetched, in threads."""
    parts = [info for info in objects if is_part(info.key)]
    if store.is_local:
        return [store.path / info.key for info in parts]
    mirror = cache_folder("scores") / blake2b(store.root.encode(), digest_size=8).hexdigest()
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        return list(threads.map(lambda info: _mirrored(store, info, mirror), parts))


def is_part(key: str) -> bool:
    """Whether a key of a scores store is a part of the table."""
    return key.startswith("scores/model=") and key.endswith(".parquet")


def create_scores_view(connection: duckdb.DuckDBPyConnection, parts: list[Path]) -> None:
    """Create the view `scores` over these parts; with none, an empty one. Raises `InputError` for a spoilt part."""
    if not parts:
        connection.register("no_scores", SCORES.empty_table())
        connection.execute("CREATE VIEW scores AS SELECT * FROM no_scores")
        return
    columns = ", ".join(SCORES.names)
    files = ", ".join("'" + _unglobbed(part).replace("'", "''") + "'" for part in parts)
    # Not DuckDB's own hive partitioning: it takes a folder above the scores, site=north, for a column of theirs.
    date = "CAST(regexp_extract(filename, 'date=([^/]*)/[^/]*$', 1) AS DATE) AS date"
    parquet = f"read_parquet([{files}], hive_partitioning = false, filename = true)"
    try:
        connection.execute(f"CREATE VIEW scores AS SELECT {columns}, {date} FROM {parquet}")  # noqa: S608 (quoted above)
    except duckdb.Error as error:
        raise InputError(f"the scores cannot be read: {str(error).partition(chr(10))[0]}") from error


def _unglobbed(path: Path) -> str:
    """DuckDB reads *, ? and [ in a file name as a pattern; a character class of one takes them literally."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))


def _mirrored(store: Store, info: ObjectInfo, mirror: Path) -> Path:
    kept = mirror / info.key
    if not (kept.exists() and kept.stat().st_size == info.size):
        # A local put is atomic, so a second process or a kill never leaves half a file under this name.
        open_store(str(mirror)).put(info.key, store.get(info.key))
    return kept


def _runs_table(store: Store, keys: list[str]) -> pa.Table:
    plans = {key.split("/")[1] for key in keys if key.startswith("runs/") and key.endswith("/plan.json")}
    finished = {key.split("/")[1] for key in keys if key.startswith("runs/") and key.endswith("/run.json")}
    names = [f"runs/{run}/{'run' if run in finished else 'plan'}.json" for run in sorted(plans | finished)]
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        records = [json.loads(data) for data in threads.map(store.get, names)]
    return pa.Table.from_pylist([_run_row(record) for record in records], schema=RUNS)


def _run_row(record: dict[str, Any]) -> dict[str, Any]:
    counts = record.get("counts")
    row = {name: record.get(name) for name in ("run_id", "model_id", "source", "date", "planned", "seconds")}
    return {**row, **(counts or {}), "state": "unfinished" if counts is None else "finished"}
