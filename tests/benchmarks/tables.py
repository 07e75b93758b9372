"""Tables of any size for the measurements: what a table of scores and a catalogue of the same archive look like.

DuckDB makes them row by row from the row's number, so they are the same on every machine.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import PART
from pipelines.ingest.catalog import ROWS_PER_PART
from pipelines.scoring.batches import in_groups
from pipelines.scoring.plan import Plan, make_plan, read_shard
from pipelines.scoring.sink import write_part
from pipelines.storage import Store, open_store
from pipelines.table.compact import MANY_PARTS, compact_model, remove_unused
from pipelines.table.delta import Part, create_table, open_table, part_folder
from pipelines.table.query import share_latest

MODEL = "aaaa000011112222"
DAY = date(2026, 1, 1)
RUN = "20260101T020000Z-abc123"

_FILES = """
    SELECT i, file,
        's3://hospital-north/archive/' || (2020 + file % 6) || '/' || lpad((file % 12 + 1)::VARCHAR, 2, '0')
            || '/1.2.840.113619.2.55.' || (hash(file) % 1000000000000) || '.' || file || '.dcm' AS uri,
        md5(i::VARCHAR) AS etag
    FROM ({numbers})
"""
_ROWS = """
    SELECT i, CASE WHEN i % 1000 < {again} THEN (i // 1000 * 1000) + {again} + i % {versioned} ELSE i END AS file
    FROM range({start}, {stop}) AS numbers(i)
"""
"""Of each thousand rows, the first `again` are further versions of the `versioned` files after them."""
_NEWEST = """
    SELECT CASE WHEN i % 1000 < 100 THEN i - 25 WHEN i % 1000 < 125 THEN i - 75 ELSE i END AS i, i AS file
    FROM (SELECT i FROM range({start}, {stop}) AS numbers(i) WHERE i % 1000 >= 75)
"""
"""The newest row of each file, where `again` is 75 and `versioned` is 50."""
_SCORES = """
    SELECT md5(uri || etag) AS scan_id, uri, etag, 'site' || file % 9 AS site,
        md5((file // 3)::VARCHAR) || md5((file // 3)::VARCHAR) AS patient_key,
        DATE '2020-01-01' + (file % 2000)::INT AS study_date,
        CASE WHEN i % 97 = 0 THEN 'failed' WHEN i % 51 = 0 THEN 'rejected' ELSE 'scored' END AS status,
        CASE status WHEN 'failed' THEN 'storage_error' WHEN 'rejected' THEN 'not_chest' END AS reason,
        CASE WHEN status = 'scored' THEN (hash(i) % 100000 / 100000)::FLOAT END AS probability,
        CASE WHEN status = 'scored' THEN [1 - probability, probability] END AS class_probabilities,
        CASE WHEN probability > 0.5 THEN 'PNEUMONIA' WHEN status = 'scored' THEN 'NORMAL' END AS prediction,
        'balanced' AS operating_point, (hash(i + 1) % 1000 / 10)::FLOAT AS ood_score,
        (hash(i + 2) % 2550 / 10)::FLOAT AS grey_mean, (hash(i + 3) % 600 / 10)::FLOAT AS grey_spread,
        '1' AS decoder_version,
        CASE WHEN i % 1000 < {again} THEN 1 + i % 1000 // {versioned} ELSE 0 END AS plan_version,
        i % 1000 < {again} AS supersedes,
        '{run}' AS run_id, (i % 1000)::INT AS shard,
        TIMESTAMPTZ '2026-01-01 02:00:00+00' + to_milliseconds(i) AS scored_at
    FROM ({files}) ORDER BY uri
"""
_CATALOG = """
    SELECT md5(uri || etag || CASE WHEN hash(i) % 1000 < {changed} THEN 'new' ELSE '' END) AS scan_id, uri, etag,
        (200000 + hash(i) % 100000)::BIGINT AS size, 'site' || file % 9 AS site, {patient} AS patient_key,
        DATE '2020-01-01' + (file % 2000)::INT AS study_date,
        TIMESTAMPTZ '2026-01-01 00:00:00+00' - to_hours((file % 50000)::INT) AS modified
    FROM ({files})
"""


def write_scores(folder: Path, rows: int, *, again: int = 75, versioned: int = 50, part_rows: int = 1_000_000) -> None:
    """A table of scores in compacted parts, with the record of its run.

    Of each thousand rows, `again` are further versions of `versioned` files.
    """
    store = open_store(str(folder))
    record = {"run_id": RUN, "model_id": MODEL, "planned": rows, "counts": {"scored": rows}}
    store.put(f"runs/{RUN}/run.json", json.dumps(record).encode())
    table = create_table(store, conditional=True)
    parts = folder / part_folder(MODEL, f"{DAY}")
    parts.mkdir(parents=True)
    added = []
    with _connection() as connection:
        for number, start in enumerate(range(0, rows, part_rows), start=1):
            stop = min(rows, start + part_rows)
            files = _FILES.format(numbers=_ROWS.format(again=again, versioned=versioned, start=start, stop=stop))
            select = _SCORES.format(files=files, again=again, versioned=versioned, run=RUN)
            reader = connection.sql(select).to_arrow_reader(65_536)
            file = parts / f"merged-{number:05d}.parquet"
            with pq.ParquetWriter(file, PART, compression="zstd") as writer:
                for batch in reader:
                    writer.write_table(
                        _filled({name: batch[name] for name in batch.schema.names}), row_group_size=122_880
                    )
            key = str(file.relative_to(folder))
            added.append(Part(key=key, size=file.stat().st_size, rows=stop - start, model_id=MODEL, date=DAY))
    table.commit(added, RUN)


def write_catalog(folder: Path, rows: int, *, changed: int = 0, patients: bool = False) -> None:
    """A catalogue of the same files, 925 for a thousand rows; `changed` of each thousand rows' have changed since then.

    Only the columns that a plan reads are there. The parts are of the size that `rayscan catalog` makes, and hold the
    files of one month after the other in the order of their names, as the listing of a bucket has them.
    """
    folder.mkdir(parents=True)
    patient = "md5((file // 3)::VARCHAR) || md5((file // 3)::VARCHAR)" if patients else "NULL::VARCHAR"
    names = []
    with _connection() as connection:
        for month in range(12):
            files = _FILES.format(numbers=_NEWEST.format(start=0, stop=rows) + f" WHERE file % 12 = {month}")
            select = _CATALOG.format(files=files, changed=changed, patient=patient)
            reader = connection.sql(f"{select} ORDER BY uri").to_arrow_reader(65_536)
            for part in in_groups((pa.Table.from_batches([batch]) for batch in reader), ROWS_PER_PART):
                names.append(f"x-{len(names):05d}.parquet")
                pq.write_table(part, folder / names[-1])
    open_store(str(folder)).put("catalog.json", json.dumps({"parts": names}).encode())


def score_nights(folder: Path, rows: int, *, changed: Sequence[int]) -> None:
    """A table as `rayscan score` leaves it: a night for the whole archive, then one for each of `changed`.

    Each of these scores the files that have changed since: so many of each thousand rows. The archive has 925 files for
    a thousand of `rows`.
    """
    store = open_store(str(folder))
    for night, share in enumerate([0, *changed]):
        catalog = folder.with_name(f"catalog-{night}")
        write_catalog(catalog, rows, changed=share)
        plan = make_plan(store, source=str(catalog), bundle="/b", model_id=MODEL, operating_point="balanced")
        shutil.rmtree(catalog)
        commit_scored(store, plan, range(plan.shards))
        record = {"run_id": plan.run_id, "model_id": MODEL, "planned": plan.planned, "counts": {"scored": plan.planned}}
        store.put(f"runs/{plan.run_id}/run.json", json.dumps(record).encode())
        table = open_table(store)
        assert table
        compact_model(table, MODEL, fewest=MANY_PARTS)
        remove_unused(store, timedelta(0))
        share_latest(store.root)


def commit_scored(store: Store, plan: Plan, shards: Iterable[int]) -> None:
    """Write and commit the parts of these shards of a plan, all of their films scored."""
    random = np.random.default_rng(0)
    parts = []
    for shard in shards:
        rows = read_shard(store, plan.run_id, shard)
        n = rows.num_rows
        probability = random.random(n, dtype=np.float32)
        both = np.column_stack([1 - probability, probability]).ravel()
        columns = {
            **{name: rows[name] for name in rows.column_names if name in PART.names},
            "probability": probability,
            "class_probabilities": pa.FixedSizeListArray.from_arrays(both, 2),
            "prediction": np.where(probability >= 0.5, "PNEUMONIA", "NORMAL"),
            **{name: 100 * random.random(n, dtype=np.float32) for name in ("ood_score", "grey_mean", "grey_spread")},
            "scored_at": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * n),
        }
        same = {
            "status": "scored",
            "operating_point": plan.operating_point,
            "decoder_version": "1",
            "run_id": plan.run_id,
            "plan_version": plan.table_version,
        }
        columns |= {name: pa.repeat(value, n) for name, value in same.items()}
        parts.append(write_part(store, plan, shard, _filled(columns)))
    create_table(store, conditional=True).commit(parts, plan.run_id)


def _filled(columns: Mapping[str, Any]) -> pa.Table:
    """Rows of a part; the columns of PART that are not given are null."""
    rows = len(columns["uri"])
    return pa.table({name: columns.get(name, pa.nulls(rows)) for name in PART.names}).cast(PART)


def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"memory_limit": "4GB", "preserve_insertion_order": "false"})
