"""Training and scoring give a film the same probability, though they decode it and run the model differently."""

from pathlib import Path

import pytest

from models.engines.choice import load_engine
from pipelines.bundles import fetch_bundle
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.ingest.dataset import load_films
from pipelines.ingest.prepare import PrepareSettings, prepare
from pipelines.scoring.runs import ScoreSettings, score
from pipelines.table.query import ask
from tuning.recipes.recipe import Recipe
from tuning.recipes.train import train
from tuning.training.loop import TrainSettings


@pytest.mark.usefixtures("ray_session")
def test_scoring_an_archive_equals_the_engine_on_prepared_films(phantom_archive: Path, tmp_path: Path) -> None:
    at = {name: str(tmp_path / name) for name in ("catalog", "dataset", "bundle", "scores")}
    build_catalog(str(phantom_archive), at["catalog"], CatalogSettings(labels="path"))
    prepare(at["catalog"], at["dataset"], PrepareSettings(size=64))
    # A network smaller than the films: scoring must decode as `prepare` did before it shrinks.
    train(at["dataset"], at["bundle"], Recipe(model="cnn", size=32, training=TrainSettings(epochs=1)))
    score(at["catalog"], at["bundle"], at["scores"], ScoreSettings(shard_size=50, precision="fp32"))

    films = load_films(at["dataset"], "val")
    expected = 1.0 - load_engine(fetch_bundle(at["bundle"]), precision="fp32")(films.pixels).probabilities[:, 0]
    rows = ask(at["scores"], "SELECT scan_id, probability FROM latest").to_pylist()
    scored = {row["scan_id"]: row["probability"] for row in rows}
    assert len(films) > 10
    # The same arithmetic in batches of another size, maybe by another engine: float32 rounding, nothing more.
    assert [scored[str(scan)] for scan in films.scan_ids] == pytest.approx(expected.tolist(), abs=1e-4)
