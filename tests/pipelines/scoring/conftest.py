"""A small real bundle, and an archive in which something is wrong with every fourth file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.statistics.calibration import Calibration
from pipelines.phantom import broken_files, dicom_bytes, encode
from pipelines.storage import Store, open_store
from tests.pipelines.bundles import save_untrained

GOOD = 9
BAD = {
    "damaged/empty.jpeg": ("unreadable", "empty_file"),
    "damaged/truncated.jpeg": ("unreadable", "truncated"),
    "damaged/text_renamed.jpeg": ("unreadable", "unknown_format"),
    "damaged/zero_size.png": ("unreadable", "no_pixels"),
    "damaged/blank.png": ("rejected", "blank"),
    "hip.dcm": ("rejected", "not_chest"),
    "lateral.dcm": ("rejected", "not_frontal"),
}
"""Key -> what must become of it; everything else is scored."""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained cnn of 32 pixels: any probabilities will do here, as long as they are its own."""
    folder = tmp_path_factory.mktemp("bundles") / "cnn"
    torch.manual_seed(3)
    calibration = Calibration(temperature=1.5, operating_points={"balanced": 0.5, "rule_out": 0.1})
    return save_untrained(folder, calibration=calibration).folder


def write_films(store: Store) -> int:
    """Fill an archive: films of all formats and one of each fault; returns how many files."""
    rng = np.random.default_rng(5)
    for number in range(GOOD):
        pixels = rng.integers(0, 255, (40, 48), dtype=np.uint8)
        suffix = ("jpeg", "png", "dcm")[number % 3]
        data = dicom_bytes(pixels) if suffix == "dcm" else encode(pixels, suffix)  # type: ignore[arg-type]
        store.put(f"films/{number}.{suffix}", data)
    pixels = rng.integers(0, 255, (40, 48), dtype=np.uint8)
    damaged = broken_files(1)
    for key in BAD:
        if key.startswith("damaged/"):
            store.put(key, damaged[key.removeprefix("damaged/")])
    store.put("hip.dcm", dicom_bytes(pixels, body_part="HIP"))
    store.put("lateral.dcm", dicom_bytes(pixels, view="LL"))
    return GOOD + len(BAD)


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    """The archive of `write_films` on local disk."""
    store = open_store(str(tmp_path / "archive"))
    write_films(store)
    return store
