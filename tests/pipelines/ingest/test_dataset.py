"""From a prepared data set to films in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import LABELS
from pipelines.decoding.decode import decode
from pipelines.errors import InputError
from pipelines.ingest import prepare as room
from pipelines.ingest.catalog import read_catalog
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.ingest.prepare import PrepareSettings, prepare
from pipelines.splits import SPLITS
from tests.pipelines.decoding.films import catalogue, write

SMALL = PrepareSettings(size=32)


@pytest.mark.usefixtures("in_process")
def test_what_cannot_be_loaded(kaggle: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    with pytest.raises(InputError, match="no data set here"):
        load_films(str(out), "train")
    prepare(catalogue(kaggle, val_fraction=0.0), str(out), SMALL)
    with pytest.raises(InputError, match=r"no films in split 'val'; it has train, test"):
        load_films(str(out), "val")
    with pytest.raises(InputError, match="no films in split 'holdout'"):
        load_films(str(out), "holdout")
    next(out.glob("*.parquet")).write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a readable part"):
        _ = load_films(str(out), "train"), load_films(str(out), "test")


@pytest.mark.usefixtures("in_process")
def test_films_without_a_patient_are_their_own(kaggle: Path, tmp_path: Path) -> None:
    files = sorted(kaggle.rglob("*.jpeg"))
    archive = write(
        tmp_path / "flat",
        {
            f"{'NORMAL' if 'IM-' in path.name else 'PNEUMONIA'}/{i}.jpeg": path.read_bytes()
            for i, path in enumerate(files)
        },
    )
    prepare(catalogue(archive), str(tmp_path / "dataset"), SMALL)
    films = load_films(str(tmp_path / "dataset"), "train")
    assert (films.patients == films.scan_ids).all()


@pytest.mark.usefixtures("in_process")
def test_films_come_in_the_order_of_their_ids_with_their_own_rows(
    kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FILMS_PER_SHARD", 7)
    catalog, out = catalogue(kaggle), str(tmp_path / "dataset")
    prepare(catalog, out, SMALL)
    assert len(read_dataset_info(out).parts["train"]) > 10
    rows = {row["scan_id"]: row for row in read_catalog(catalog).to_pylist()}
    for split in SPLITS:
        films = load_films(out, split)
        assert list(films.scan_ids) == sorted(scan for scan, row in rows.items() if row["split"] == split)
        assert (films.pixels.dtype, films.labels.dtype, films.size) == (np.uint8, np.int64, 32)
        for i, scan in enumerate(films.scan_ids):
            row = rows[scan]
            assert LABELS[films.labels[i]] == row["label"]
            assert (films.patients[i], films.subtypes[i]) == (row["patient_key"], row["subtype"] or "")
            data = Path(row["uri"].removeprefix("file://")).read_bytes()
            assert (films.pixels[i] == decode(data, SMALL.preprocessing).pixels).all()


@pytest.mark.usefixtures("in_process")
def test_a_missing_part_is_named(kaggle: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    prepare(catalogue(kaggle), str(out), SMALL)
    (part,) = read_dataset_info(str(out)).parts["val"]
    (out / part).unlink()
    with pytest.raises(InputError, match=part):
        load_films(str(out), "val")
    assert len(load_films(str(out), "test")) == 11


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": 32, "preprocessing": {"colour": 1}}', "null"])
def test_a_spoilt_manifest_is_no_data_set(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="no data set here"):
        read_dataset_info(str(tmp_path))


def test_reading_needs_no_ray() -> None:
    code = "import sys, pipelines.ingest.dataset; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
