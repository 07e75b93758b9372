"""From a catalogue to films in memory, by a real Ray."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.spec import Preprocessing
from pipelines.contracts import dataset_schema
from pipelines.decoding.decode import decode
from pipelines.errors import InputError
from pipelines.ingest import prepare as room
from pipelines.ingest.catalog import CatalogSettings, build_catalog, read_catalog
from pipelines.ingest.dataset import load_films, read_dataset_info
from pipelines.ingest.prepare import DatasetSummary, PrepareSettings, prepare
from tests.pipelines.decoding.films import catalogue, write
from tests.servers import S3Server

SMALL = PrepareSettings(size=32)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FILMS_PER_SHARD", 20)


@pytest.mark.usefixtures("small_shards", "ray_session")
def test_every_film_arrives_decoded_and_in_order(kaggle: Path, tmp_path: Path) -> None:
    catalog, out = catalogue(kaggle), str(tmp_path / "dataset")
    broken = kaggle / "train/NORMAL/IM-0001-0001.jpeg"
    broken.write_bytes(broken.read_bytes()[:400])
    catalog = catalogue(kaggle)
    summary = prepare(catalog, out, SMALL)
    rows = {row["scan_id"]: row for row in read_catalog(catalog).to_pylist()}
    wanted = [row for row in rows.values() if row["split"] != "excluded" and row["uri"] != f"file://{broken}"]
    assert summary.films == len(wanted) == 148
    assert summary.unreadable == {"truncated": 1}
    counts = Counter((row["split"], row["label"]) for row in wanted)
    info = read_dataset_info(out)
    assert (info.size, info.preprocessing) == (32, Preprocessing(size=32))
    for split in ("train", "val", "test"):
        films = load_films(out, split)
        assert films.pixels.flags.c_contiguous
        assert films.pixels.shape == (len(films), 32, 32)
        assert list(films.scan_ids) == sorted(row["scan_id"] for row in wanted if row["split"] == split)
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            assert (films.labels == label).sum() == counts[split, name] == info.counts[split][name]
        for i in (0, len(films) // 2, -1):
            row = rows[films.scan_ids[i]]
            data = Path(row["uri"].removeprefix("file://")).read_bytes()
            assert (films.pixels[i] == decode(data, Preprocessing(size=32)).pixels).all()
            assert (films.patients[i], films.subtypes[i]) == (row["patient_key"], row["subtype"] or "")
    manifest = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert manifest["unreadable"] == [[f"file://{broken}", "truncated"]]
    part = pq.read_table(next((tmp_path / "dataset").glob("*.parquet")))
    assert part.schema.equals(dataset_schema(32))
    assert part["width"].to_pylist()[0] == 96


@pytest.mark.usefixtures("in_process")
def test_the_fingerprint_tells_data_and_preprocessing(kaggle: Path, tmp_path: Path) -> None:
    catalog = catalogue(kaggle)
    again = [prepare(catalog, str(tmp_path / name), SMALL).fingerprint for name in "ab"]
    other = prepare(catalog, str(tmp_path / "c"), PrepareSettings(size=32, decode="exact")).fingerprint
    resplit = prepare(catalogue(kaggle, seed=9), str(tmp_path / "d"), SMALL).fingerprint
    assert again[0] == again[1]
    assert len({again[0], other, resplit}) == 3


@pytest.mark.usefixtures("in_process")
def test_a_dataset_is_replaced_whole(kaggle: Path, tmp_path: Path) -> None:
    catalog, out = catalogue(kaggle), tmp_path / "dataset"
    prepare(catalog, str(out), SMALL)
    prepare(catalog, str(out), PrepareSettings(size=16))
    named = {name for names in read_dataset_info(str(out)).parts.values() for name in names}
    assert {path.name for path in out.iterdir()} == named | {"dataset.json"}
    assert load_films(str(out), "train").size == 16


@pytest.mark.usefixtures("in_process")
def test_files_that_changed_or_went_are_listed(kaggle: Path, tmp_path: Path) -> None:
    catalog = catalogue(kaggle)
    (kaggle / "train/NORMAL/IM-0001-0001.jpeg").unlink()
    changed = kaggle / "train/NORMAL/IM-0002-0001.jpeg"
    changed.write_bytes(changed.read_bytes() + b"\0")
    summary = prepare(catalog, str(tmp_path / "dataset"), SMALL)
    assert summary.unreadable == {"vanished": 1, "changed": 1}


def refused(archive: Path, message: str, **settings: object) -> None:
    out = archive.parent / "dataset"
    with pytest.raises(InputError, match=message):
        prepare(catalogue(archive, **settings), str(out), SMALL)
    assert not (out / "dataset.json").exists()


@pytest.mark.usefixtures("in_process")
def test_films_of_another_hospital_that_are_only_to_be_judged_need_no_training_films(
    kaggle: Path, tmp_path: Path
) -> None:
    films = {f"test/{path.parent.name}/{path.name}": path.read_bytes() for path in kaggle.rglob("*.jpeg")}
    prepare(catalogue(write(tmp_path / "elsewhere", films), val_fraction=0.0), str(tmp_path / "out"), SMALL)
    assert set(load_films(str(tmp_path / "out"), "test").labels) == {0, 1}
    with pytest.raises(InputError, match="no films in split 'train'"):
        load_films(str(tmp_path / "out"), "train")


@pytest.mark.usefixtures("in_process")
def test_what_cannot_be_prepared(kaggle: Path, tmp_path: Path) -> None:
    one_class = write(tmp_path / "one", {f"NORMAL/{i}.jpeg": p.read_bytes() for i, p in enumerate(kaggle.rglob("IM*"))})
    refused(one_class, "films of both classes")
    junk = write(tmp_path / "junk", {f"{label}/{i}.jpeg": b"x" for label in ("NORMAL", "PNEUMONIA") for i in range(9)})
    refused(junk, "none of its 18 labelled films can be read")
    build_catalog(str(kaggle), str(tmp_path / "bare"), CatalogSettings())
    with pytest.raises(InputError, match="no labelled films"):
        prepare(str(tmp_path / "bare"), str(tmp_path / "out"), SMALL)
    with pytest.raises(InputError, match="size 5000"):
        prepare(str(tmp_path / "bare"), str(tmp_path / "out"), PrepareSettings(size=5000))


@pytest.mark.usefixtures("in_process")
def test_on_s3(s3: S3Server, kaggle: Path) -> None:
    root = s3.bucket()
    summary: DatasetSummary = prepare(catalogue(kaggle), f"{root}/dataset", SMALL)
    assert summary.films == len(load_films(f"{root}/dataset", "train")) + sum(
        len(load_films(f"{root}/dataset", split)) for split in ("val", "test")
    )
    assert np.unique(load_films(f"{root}/dataset", "val").labels).tolist() == [0, 1]
