"""The way back to the PACS: unique identifiers of study, series and image, joined to the scores by scan_id.

    SCORES/identity/model_id=<id>/date=<YYYY-MM-DD>/<run_id>-<shard>.parquet    rows of contracts.IDENTITY

They lead to the patient, so they lie apart from the scores, under a prefix of their own that a policy of the store can
guard; nothing else of rayscan reads them, and no report, log or metric holds one. The worker that writes a part writes
them first, under a fixed name: a shard that is done again writes the same file.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts import IDENTITY, IDENTITY_FOLDER
from pipelines.decoding.film import FilmResult
from pipelines.scoring.plan import Plan
from pipelines.storage import Store


def write_identity(store: Store, plan: Plan, shard: int, scans: pa.Table, films: list[FilmResult]) -> None:
    """Write the identifiers of a shard's DICOM scans; nothing if it has none."""
    rows = [
        {**scan, **vars(film.identity)}
        for scan, film in zip(scans.select(["scan_id", "uri"]).to_pylist(), films, strict=True)
        if film.identity is not None
    ]
    if not rows:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=IDENTITY), sink, compression="zstd")
    folder = f"{IDENTITY_FOLDER}/model_id={plan.model_id}/date={plan.date}"
    store.put(f"{folder}/{plan.run_id}-{shard:05d}.parquet", sink.getvalue().to_pybytes())
