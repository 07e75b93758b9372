"""The night on which nothing is new: a million scans, all scored before, and the command must be gone in a minute."""

import json
import os
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import PART
from pipelines.ingest.listing import list_archive
from pipelines.phantom import write_archive
from pipelines.storage import open_store
from pipelines.table.delta import Part, create_table, part_folder
from tests.benchmarks.bundles import untrained
from tests.benchmarks.films import link
from tests.benchmarks.measured import machine, record
from tests.benchmarks.processes import watch
from tests.servers import clean_environment

SCANS = int(os.environ.get("RAYSCAN_BENCH_IDLE_SCANS", "1000000"))
SHARD = 256
"""Rows of one part, as `score` writes them by default."""
SECONDS = 60
NIGHTS = 30
"""The scans were scored over so many nights."""


def write_scores(archive: Path, scores: Path, model_id: str) -> int:
    """Parts as earlier nights would have left them for every scan of the archive; returns how many scans."""
    rng = np.random.default_rng(0)
    listing = pa.concat_tables(list_archive(open_store(str(archive))))
    rows = len(listing)
    probability = rng.random(rows, dtype=np.float32)
    known = {
        **{name: listing[name] for name in ("scan_id", "uri", "etag", "site", "patient_key", "study_date")},
        "status": pa.array(["scored"] * rows),
        "probability": probability,
        "class_probabilities": pa.FixedSizeListArray.from_arrays(
            np.column_stack([1 - probability, probability]).ravel(), 2
        ),
        "prediction": np.where(probability >= 0.5, "PNEUMONIA", "NORMAL"),
        "operating_point": pa.array(["balanced"] * rows),
        "decoder_version": pa.array(["1"] * rows),
        "plan_version": pa.array([0] * rows),
        "supersedes": pa.array([False] * rows),
        "run_id": pa.array(["20260101T000000Z-000000"] * rows),
        "shard": np.arange(rows) // SHARD,
        "scored_at": pa.array([datetime.now(UTC)] * rows),
    }
    table = pa.table({name: known.get(name, pa.nulls(rows)) for name in PART.names}).cast(PART)
    added = []
    for shard, start in enumerate(range(0, rows, SHARD)):
        day = date(2026, 1, shard % NIGHTS + 1)
        file = scores / part_folder(model_id, f"{day}") / f"20260101T000000Z-000000-{shard:05d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        part = table.slice(start, SHARD)
        pq.write_table(part, file, compression="zstd")
        key, size = str(file.relative_to(scores)), file.stat().st_size
        added.append(Part(key=key, size=size, rows=part.num_rows, model_id=model_id, date=day))
    create_table(open_store(str(scores)), conditional=True).commit(added, "20260101T000000Z-000000")
    return rows


@pytest.mark.bench
def test_a_night_without_news_is_short(
    tmp_path: Path, rayscan_command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(open_store(str(tmp_path / "distinct")), patients=60, seed=0, size=32)
    link(tuple(sorted((tmp_path / "distinct").rglob("*.jpeg"))), tmp_path / "films", SCANS)
    model_id = untrained("cnn", tmp_path / "bundle", size=32)
    assert write_scores(tmp_path / "films", tmp_path / "scores", model_id) == SCANS
    command = [rayscan_command, "score", str(tmp_path / "films"), "--model", str(tmp_path / "bundle")]
    run = watch([*command, "--out", str(tmp_path / "scores"), "--json"], clean_environment(), every=1, memory=True)
    (answer,) = json.loads(run.output)
    peak = max(gib for _, gib in run.memory)
    text = f"{SCANS} scans, all scored before, in {-(-SCANS // SHARD)} parts: {run.wall:.1f} s, {run.cpu:.1f} CPU-s,"
    text += f" peak {peak:.2f} GiB resident, {answer['planned']} planned."
    with capsys.disabled():
        print(f"\n{machine()}\n{text}")
    record("idle-night", text)
    assert (answer["listed"], answer["planned"]) == (SCANS, 0)
    assert run.wall <= SECONDS
