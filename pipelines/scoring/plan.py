"""What this model has not scored yet: the listing minus what stands in the table, cut into shards.

A plan is written whole before work starts and never changes:

    runs/<run_id>/plan/00000.parquet   up to SHARDS_PER_FILE shards, one row group each, rows of contracts.PLAN
    runs/<run_id>/plan.json            written last; a plan without it does not exist

A scan is stale when this model has no row for its scan_id, or only `failed` ones. A changed file has a new scan_id, a
new model has no rows, so both are stale by the same rule.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from secrets import token_hex

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PLAN
from pipelines.errors import InputError
from pipelines.ingest.catalog import is_catalog, read_catalog
from pipelines.ingest.listing import list_archive
from pipelines.results.query import create_scores_view, local_parts
from pipelines.storage import Store, open_store

SHARDS_PER_FILE = 64
_LISTED = [name for name in PLAN.names if name != "shard"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The unchanging description of one run."""

    run_id: str
    model_id: str
    bundle: str
    """URI the model was read from."""
    operating_point: str
    """Name of the locked threshold that decides `prediction`."""
    source: str
    """URI of the archive or catalogue."""
    date: str
    """Partition of the scores: the UTC day the run began, YYYY-MM-DD."""
    planned: int
    """Scans."""
    listed: int
    """Scans in the listing, those already scored included."""
    shards: int
    bytes: int
    """Size of the planned files."""
    plan_hash: str
    """BLAKE2b over the plan's rows."""
    created: str
    """ISO 8601, UTC."""


def make_plan(store: Store, *, source: str, bundle: str, model_id: str, operating_point: str, shard_size: int) -> Plan:
    """Plan a new run and write it. Raises `NotFoundError` when the source is absent, `InputError` when it is empty."""
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-{token_hex(3)}"
    with duckdb.connect() as connection:
        listed = _load_listing(connection, _listing(source))
        if not listed:  # an S3 prefix with a typo lists nothing, too: that night must not pass for a quiet one
            raise InputError(f"{open_store(source).root}: no scans here; check the path")
        _load_done(connection, store, model_id)
        stale = (
            connection.sql(
                "SELECT listing.*, ((row_number() OVER (ORDER BY uri, scan_id)) - 1) // ? AS shard FROM listing"
                " ANTI JOIN done USING (scan_id) ORDER BY uri, scan_id",
                params=[shard_size],
            )
            .to_arrow_table()
            .cast(PLAN)
        )
    digest = _write_shards(store, run_id, stale, shard_size)
    plan = Plan(
        run_id=run_id,
        model_id=model_id,
        bundle=open_store(bundle).root,
        operating_point=operating_point,
        source=open_store(source).root,
        date=f"{now:%Y-%m-%d}",
        planned=stale.num_rows,
        listed=listed,
        shards=-(-stale.num_rows // shard_size),
        bytes=sum(stale["size"].to_pylist()),
        plan_hash=digest,
        created=now.isoformat(),
    )
    store.put(f"runs/{run_id}/plan.json", json.dumps(asdict(plan), indent=1).encode())
    return plan


def unfinished_plans(store: Store, model_id: str) -> list[Plan]:
    """Plans of this model without a run record, oldest first: a run that was killed is taken up under its own plan."""
    if store.is_local and not store.path.is_dir():
        return []
    keys = {info.key for chunk in store.list("runs") for info in chunk}
    waiting = sorted(
        key for key in keys if key.endswith("/plan.json") and key.replace("/plan.json", "/run.json") not in keys
    )
    plans = [Plan(**json.loads(store.get(key))) for key in waiting]
    return [plan for plan in plans if plan.model_id == model_id]


def read_shard(store: Store, run_id: str, shard: int) -> pa.Table:
    """The rows of one shard, as contracts.PLAN."""
    data = _kept_plan_file(store, run_id, shard // SHARDS_PER_FILE)
    return pq.ParquetFile(pa.BufferReader(data)).read_row_group(shard % SHARDS_PER_FILE)


@lru_cache(maxsize=2)
def _kept_plan_file(store: Store, run_id: str, number: int) -> bytes:
    # Shards are handed out in order, so a process asks for the same file up to SHARDS_PER_FILE times.
    return store.get(_plan_file(run_id, number))


def _listing(source: str) -> Iterable[pa.Table]:
    if is_catalog(source):
        return [read_catalog(source, columns=_LISTED)]
    return (table.select(_LISTED) for table in list_archive(open_store(source)))


def _load_listing(connection: duckdb.DuckDBPyConnection, tables: Iterable[pa.Table]) -> int:
    """Fill the table `listing`; returns its rows. One file listed twice (a catalogue may) is one scan."""
    connection.register("empty", PLAN.empty_table().select(_LISTED))
    connection.execute("CREATE TABLE listing AS SELECT * FROM empty")
    for table in tables:
        connection.register("chunk", table)
        connection.execute("INSERT INTO listing SELECT * FROM chunk")
        connection.unregister("chunk")
    connection.execute("CREATE OR REPLACE TABLE listing AS SELECT DISTINCT ON (scan_id) * FROM listing")
    [(count,)] = connection.execute("SELECT count(*) FROM listing").fetchall()
    return int(count)


def _load_done(connection: duckdb.DuckDBPyConnection, store: Store, model_id: str) -> None:
    """Create the view `done`: scan_ids this model has dealt with."""
    prefix = f"scores/model={model_id}"
    absent = store.is_local and not store.path.is_dir()
    objects = [] if absent else [info for chunk in store.list(prefix) for info in chunk]
    create_scores_view(connection, local_parts(store, objects))
    connection.execute("CREATE VIEW done AS SELECT scan_id FROM scores WHERE status <> 'failed'")


def _write_shards(store: Store, run_id: str, stale: pa.Table, shard_size: int) -> str:
    digest = blake2b(digest_size=16)
    rows_per_file = shard_size * SHARDS_PER_FILE
    for number, rows in enumerate(_slices(stale, rows_per_file)):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, PLAN) as writer:
            for shard in _slices(rows, shard_size):
                writer.write_table(shard, row_group_size=shard_size)
        data = sink.getvalue().to_pybytes()
        digest.update(data)
        store.put(_plan_file(run_id, number), data)
    return digest.hexdigest()


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _plan_file(run_id: str, number: int) -> str:
    return f"runs/{run_id}/plan/{number:05d}.parquet"
