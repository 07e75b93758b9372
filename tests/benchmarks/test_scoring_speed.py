"""How much of the machine reaches the films: the whole `score` against a bare loop with no framework, in one run.

The bare loop fetches, decodes, gates and infers the same films with the same engine in one process and one thread a
core; what `score` loses against it is Ray, planning, Parquet and reconciling. Absolute rates are noisy on shared
machines: read the ratio.
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.engine import load_engine
from models.films import Films
from models.spec import ModelSpec, Preprocessing
from pipelines.bundles import fetch_bundle
from pipelines.ingest.dataset import DatasetInfo
from pipelines.ingest.listing import list_archive
from pipelines.phantom import write_archive
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.scoring.score import score_rows
from pipelines.storage import open_store
from tests.models.synthetic import blob_films
from tuning.loop import TrainSettings, fit
from tuning.promote import promote

COPIES = 12
"""The generated films lie in so many folders, to make the archive long enough to time."""


def _bundle(uri: str) -> None:
    spec = ModelSpec(name="cnn", preprocessing=Preprocessing(size=112))
    train: Films = blob_films(64, size=112)
    info = DatasetInfo(size=112, preprocessing=spec.preprocessing, fingerprint="none", counts={}, parts={})
    promote(fit(spec, train, train, TrainSettings(epochs=1)), train, train, info, uri, lineage={})


@pytest.mark.bench
@pytest.mark.usefixtures("ray_session")
def test_score_against_a_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _bundle(str(tmp_path / "bundle"))
    first = tmp_path / "films" / "0"
    write_archive(open_store(str(first)), patients=40, seed=0, size=(900, 1500))
    for copy in range(1, COPIES):
        shutil.copytree(first, tmp_path / "films" / str(copy))
    bundle = fetch_bundle(str(tmp_path / "bundle"))
    engine = load_engine(bundle, threads=1)
    store = open_store(str(tmp_path / "films"))

    started = time.perf_counter()
    films = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for table in list_archive(store):
            films += len(score_rows(table, bundle.spec.preprocessing, engine, threads, 8)[0])
    bare = films / (time.perf_counter() - started)

    started = time.perf_counter()
    (record,) = score(str(tmp_path / "films"), str(tmp_path / "bundle"), str(tmp_path / "scores"), ScoreSettings())
    whole = record.planned / (time.perf_counter() - started)
    assert record.counts["scored"] == films
    with capsys.disabled():
        print(f"\n{films} films, {os.cpu_count()} cores, {engine.name}: bare loop {bare:.0f} films/s, whole score")
        print(f"{whole:.0f} films/s ({whole / bare:.2f} of it), the actors' start included")
