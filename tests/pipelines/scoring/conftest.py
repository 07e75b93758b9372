"""A small real bundle, and the archive of `archive.py`."""

from pathlib import Path

import pytest
import torch

from models.statistics.calibration import Calibration
from pipelines.storage import Store, open_store
from tests.pipelines.bundles import save_untrained
from tests.pipelines.scoring.archive import write_films


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
