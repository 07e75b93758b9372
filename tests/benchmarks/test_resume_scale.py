"""A run of a million scans that broke off at 99 % reads no film of the shards that are done.

Their films do not even exist: one that was looked for would become a row `failed`. The films of the last shards are
real and small. RAYSCAN_BENCH_ROWS asks for another number of scans.
"""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import scan_id
from pipelines.phantom import write_archive
from pipelines.scoring.plan import make_plan, read_shard
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.storage import open_store
from tests.benchmarks.bundles import untrained
from tests.benchmarks.films import link
from tests.benchmarks.tables import commit_scored

SCANS = int(os.environ.get("RAYSCAN_BENCH_ROWS", "1000000"))
SHARE = 0.02
"""Of the archive's bytes, the most that a resumed run may read."""


@pytest.mark.bench
def test_a_resumed_run_reads_what_is_missing(
    tmp_path: Path, ray_of_this_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(open_store(str(tmp_path / "distinct")), patients=60, seed=0, size=32)
    distinct = tuple(sorted((tmp_path / "distinct").rglob("*.jpeg")))
    model_id = untrained("cnn", tmp_path / "bundle", size=32)
    films, store = open_store(str(tmp_path / "films")), open_store(str(tmp_path / "scores"))
    uris = [films.uri(f"{number // 1000:04d}/{number:07d}.jpeg") for number in range(SCANS)]
    known = [open_store(str(film.parent)).head(film.name) for film in distinct]
    etags = [known[number % len(known)].etag for number in range(SCANS)]
    catalog = {
        "scan_id": [scan_id(uri, etag) for uri, etag in zip(uris, etags, strict=True)],
        "uri": uris,
        "etag": etags,
        "size": [known[number % len(known)].size for number in range(SCANS)],
        **{name: pa.nulls(SCANS, kind) for name, kind in _UNKNOWN.items()},
    }
    (tmp_path / "catalog").mkdir()
    pq.write_table(pa.table(catalog), tmp_path / "catalog" / "x-00000.parquet")
    open_store(str(tmp_path / "catalog")).put("catalog.json", b'{"parts": ["x-00000.parquet"]}')
    plan = make_plan(
        store,
        source=str(tmp_path / "catalog"),
        bundle=str(tmp_path / "bundle"),
        model_id=model_id,
        operating_point="balanced",
    )
    done = plan.shards - max(1, plan.shards // 100)
    commit_scored(store, plan, range(done))
    missing = sum(read_shard(store, plan.run_id, shard).num_rows for shard in range(done, plan.shards))
    link(distinct, tmp_path / "films", missing, first=SCANS - missing)

    resumed, new = score(str(tmp_path / "catalog"), str(tmp_path / "bundle"), store.root, ScoreSettings())
    read = resumed.megabytes_per_second * resumed.seconds * 1e6
    with capsys.disabled():
        print(f"\n{SCANS:,} scans, {resumed.resumed_shards} of {resumed.shards} shards done before: read {missing:,}")
        print(f"films, {read / 1e6:.1f} of {resumed.bytes / 1e6:.1f} MB, in {resumed.seconds:.0f} s")
    assert (resumed.run_id, resumed.resumed_shards, new.planned) == (plan.run_id, done, 0)
    assert resumed.counts["failed"] == 0
    assert sum(resumed.counts.values()) == SCANS
    assert 0 < read <= SHARE * resumed.bytes


_UNKNOWN = {"site": pa.string(), "patient_key": pa.string(), "study_date": pa.date32()}
