"""A small real bundle, and the archive of `archive.py`."""

from pathlib import Path

import pytest
import torch

from models.bundle import Bundle, load_bundle
from models.engines.choice import Engine, load_engine
from models.statistics.calibration import Calibration
from pipelines.scoring.films import FilmReader
from pipelines.storage import Store, open_store
from tests.pipelines.bundles import save_untrained
from tests.pipelines.scoring.archive import reads, write_films


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained cnn of 32 pixels: any probabilities will do here, as long as they are its own."""
    folder = tmp_path_factory.mktemp("bundles") / "cnn"
    torch.manual_seed(3)
    calibration = Calibration(temperature=1.5, operating_points={"balanced": 0.5, "rule_out": 0.1})
    return save_untrained(folder, calibration=calibration).folder


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    """The archive of `write_films` on local disk."""
    store = open_store(str(tmp_path / "archive"))
    write_films(store)
    return store


@pytest.fixture(scope="module")
def model(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def engine(model: Bundle) -> Engine:
    return load_engine(model, device="cpu", threads=1)


@pytest.fixture(scope="module")
def reader(model: Bundle) -> FilmReader:
    return FilmReader(reads(model), threads=4)
