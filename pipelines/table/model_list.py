"""The models of a place, one row each: those that have a role, that had one, and that have only scored."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.contracts import TIMESTAMP
from pipelines.storage import open_store
from pipelines.table.registry import ROLES, Entry, read_entries, role_of
from pipelines.table.views import run_records

RETIRED = "retired"
"""Role of a model that had one."""
UNNAMED = "unnamed"
"""Role of a model that has scored here and was never promoted."""

MODEL_LIST = pa.schema(
    [
        pa.field("role", pa.string()),
        pa.field("name", pa.string()),
        pa.field("model_id", pa.string()),
        pa.field("since", TIMESTAMP),
        pa.field("who", pa.string()),
        pa.field("why", pa.string()),
        pa.field("runs", pa.int64()),
        pa.field("last_run", pa.string()),
        pa.field("bundle", pa.string()),
    ]
)


def list_models(uri: str) -> pa.Table:
    """The models at the scores of a URI, the schema MODEL_LIST: production first, the unnamed last."""
    store = open_store(uri)
    records = run_records(store, (info.key for chunk in store.list("runs") for info in chunk))
    entries = read_entries(store)
    order = [*reversed(ROLES), RETIRED, UNNAMED]
    known = {entry.model_id for entry in entries} | {record["model_id"] for record in records if record.get("model_id")}
    rows = [_row(model, entries, records) for model in known]
    rows.sort(key=lambda row: row["last_run"] or "", reverse=True)
    return pa.Table.from_pylist(sorted(rows, key=lambda row: order.index(row["role"])), schema=MODEL_LIST)


def _row(model: str, entries: list[Entry], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [entry for entry in entries if entry.model_id == model]
    held = role_of(entries, model)
    runs = [record for record in records if record.get("model_id") == model]
    told = held or (mine[-1] if mine else None)
    return {
        "role": held.role if held else RETIRED if mine else UNNAMED,
        "name": told and told.name,
        "model_id": model,
        "since": told and told.at,
        "who": told and told.who,
        "why": told and told.why,
        "runs": len(runs),
        "last_run": max((record["run_id"] for record in runs), default=None),
        "bundle": told.bundle if told else next((record.get("bundle") for record in reversed(runs)), None),
    }
