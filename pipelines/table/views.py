"""The views over the scores, in SQL, and the small tables built from the records of runs and models."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.contracts import TIMESTAMP
from pipelines.storage import Store
from pipelines.table.registry import Entry, periods

READ_THREADS = 16

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("state", pa.string()),  # finished, unfinished
        pa.field("model_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("date", pa.string()),
        *[
            pa.field(name, pa.int64())
            for name in ("listed", "planned", "scored", "rejected", "unreadable", "failed", "removed")
        ],
        pa.field("seconds", pa.float64()),
        pa.field("scans_per_second", pa.float64()),
        pa.field("engine", pa.string()),
        pa.field("layout", pa.string()),
        pa.field("drift_level", pa.string()),
    ]
)

DRIFT = pa.schema(
    [
        pa.field("run_id", pa.string()),
        pa.field("model_id", pa.string()),
        pa.field("date", pa.string()),
        pa.field("site", pa.string()),
        pa.field("quantity", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("psi", pa.float64()),
        pa.field("ks", pa.float64()),
        pa.field("level", pa.string()),
    ]
)

MODELS = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("role", pa.string()),
        pa.field("model_id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("bundle", pa.string()),
        pa.field("action", pa.string()),  # promote, rollback
        pa.field("who", pa.string()),
        pa.field("why", pa.string()),
        pa.field("valid_from", TIMESTAMP),
        pa.field("valid_to", TIMESTAMP),  # null: in force
    ]
)

AGREEMENT = """
    SELECT a.scan_id, a.uri, a.site, a.model_id AS model_a, b.model_id AS model_b,
           a.probability AS probability_a, b.probability AS probability_b,
           a.prediction AS prediction_a, b.prediction AS prediction_b,
           a.prediction IS DISTINCT FROM b.prediction AS flipped, b.probability - a.probability AS difference
    FROM latest AS a JOIN latest AS b ON a.scan_id = b.scan_id AND a.model_id < b.model_id
    WHERE a.status = 'scored' AND b.status = 'scored'
"""

IN_PRODUCTION = "(SELECT model_id FROM models WHERE role = 'production' AND valid_to IS NULL)"

VIEWS = {
    "models": "SELECT * FROM models_table ORDER BY number",
    "production": f"SELECT * FROM latest WHERE model_id = {IN_PRODUCTION}",  # noqa: S608 (constants of this module)
    "rejects": "SELECT * FROM latest WHERE status <> 'scored'",
    "agreement": AGREEMENT,
    "runs": "SELECT * FROM runs_table ORDER BY run_id",
    "drift": "SELECT * FROM drift_table ORDER BY run_id, site, quantity",
}


def run_records(store: Store, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The record of each run among these keys, sorted by run id; the plan of a run that has no record yet."""
    names = {key for key in keys if key.startswith("runs/") and key.count("/") == 2}
    runs = sorted({key.split("/")[1] for key in names if key.endswith(("/plan.json", "/run.json"))})
    wanted = [f"runs/{run}/{'run' if f'runs/{run}/run.json' in names else 'plan'}.json" for run in runs]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        return [json.loads(data) for data in threads.map(store.get, wanted)]


def create_record_tables(
    connection: duckdb.DuckDBPyConnection, records: Iterable[Mapping[str, Any]], entries: Sequence[Entry]
) -> None:
    """Create `runs_table`, `drift_table` and `models_table`, over which the views of these names are made.

    A run that did not measure drift has no rows in `drift_table`.
    """
    records = list(records)
    drift = [
        {**{name: record.get(name) for name in ("run_id", "model_id", "date")}, **entry}
        for record in records
        for entry in record.get("drift") or []
    ]
    models = [
        {**asdict(period.entry), "valid_from": period.entry.at, "valid_to": period.until} for period in periods(entries)
    ]
    _create(connection, "runs_table", RUNS, [_run(record) for record in records])
    _create(connection, "drift_table", DRIFT, drift)
    _create(connection, "models_table", MODELS, models)


def _create(
    connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Not by an Arrow table of the rows: the first list that Arrow is given has it import pandas, which takes 0.3 s."""
    connection.register("no_rows", pa.Table.from_batches([], schema))
    connection.execute(f"CREATE TABLE {name} AS FROM no_rows")
    connection.unregister("no_rows")
    if rows:
        columns = [[row.get(column) for row in rows] for column in schema.names]
        connection.execute(f"INSERT INTO {name} SELECT {', '.join(['unnest(?)'] * len(columns))}", columns)


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    counts = record.get("counts")
    row = {name: record.get(name) for name in RUNS.names}
    named = {name: _name(record.get(name)) for name in ("engine", "layout")}
    return {**row, **named, **(counts or {}), "state": "unfinished" if counts is None else "finished"}


def _name(value: Any) -> str | None:
    """The name of an engine or layout, which versions of rayscan recorded as text or as an object."""
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("reason")
    return None if value is None else str(value)
