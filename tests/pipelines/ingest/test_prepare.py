"""From a catalogue to films in memory, by a real Ray."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.spec import Preprocessing
from pipelines.contracts import Reason, dataset_schema
from pipelines.decoding.decode import decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import ClusterError, IncompleteError, InputError, ScanError
from pipelines.ingest import prepare as room
from pipelines.ingest.catalog import CatalogSettings, build_catalog, read_catalog
from pipelines.ingest.dataset import check_fits, load_films, read_dataset_info
from pipelines.ingest.prepare import DatasetSummary, PrepareSettings, prepare
from pipelines.shards import Stage
from tests.pipelines.decoding.films import catalogue, write
from tests.servers import S3Server

SMALL = PrepareSettings(size=32)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 films a shard."""
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


Interrupt = Callable[[int], AbstractContextManager[list[int]]]


@pytest.fixture
def dying(in_process: None, small_shards: None, monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """The run ends in an error after some shards are done; the list names the shards that were begun."""
    whole = room.run_shards

    @contextmanager
    def after(shards: int) -> Iterator[list[int]]:
        begun: list[int] = []

        def run(name: str, planned: Sequence[dict[str, Any]], stage: Stage) -> Iterator[dict[str, Any]]:
            for row in whole(name, planned, stage):  # type: ignore[arg-type]
                begun.append(int(row["shard"]))
                if len(begun) > shards:
                    raise ClusterError("killed")
                yield row

        with monkeypatch.context() as patch:
            patch.setattr(room, "run_shards", run)
            yield begun

    return after


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_preparation_goes_on_with_the_missing_shards_only(
    kaggle: Path, tmp_path: Path, dying: Interrupt
) -> None:
    catalog, out = catalogue(kaggle), tmp_path / "dataset"
    with dying(3) as first, pytest.raises(ClusterError):
        prepare(catalog, str(out), SMALL)
    assert not (out / "dataset.json").exists()
    with dying(99) as second:
        summary = prepare(catalog, str(out), SMALL)
    assert len(first) == summary.shards_found == 4  # the fourth was written, but its answer was lost
    assert sorted(first + second) == list(range(summary.shards))
    assert summary.planned == summary.films == 149
    with dying(99):
        assert prepare(catalog, str(tmp_path / "straight"), SMALL).fingerprint == summary.fingerprint
    assert files(out) == files(tmp_path / "straight")  # no record, no part of the killed run is left


def test_what_is_prepared_is_not_prepared_again(kaggle: Path, tmp_path: Path, dying: Interrupt) -> None:
    catalog, out = catalogue(kaggle), str(tmp_path / "dataset")
    with dying(99):
        first = prepare(catalog, out, SMALL)
    with dying(0) as begun:
        again = prepare(catalog, out, SMALL)
    assert begun == []
    assert (again.fingerprint, again.films, again.shards_found) == (first.fingerprint, first.films, first.shards)


def test_parts_that_went_are_made_again(kaggle: Path, tmp_path: Path, dying: Interrupt) -> None:
    catalog, out = catalogue(kaggle), tmp_path / "dataset"
    with dying(99):
        first = prepare(catalog, str(out), SMALL)
        next(out.glob("*.parquet")).unlink()
        assert prepare(catalog, str(out), SMALL).fingerprint == first.fingerprint
        load_films(str(out), "train")


def test_a_killed_preparation_of_other_films_is_swept_away(kaggle: Path, tmp_path: Path, dying: Interrupt) -> None:
    out = tmp_path / "dataset"
    with dying(2), pytest.raises(ClusterError):
        prepare(catalogue(kaggle), str(out), PrepareSettings(size=16))
    (out / "notes.txt").write_text("not ours")
    with dying(99):
        prepare(catalogue(kaggle), str(out), SMALL)
    named = {name for names in read_dataset_info(str(out)).parts.values() for name in names}
    assert files(out).keys() == named | {"dataset.json", "notes.txt"}


def test_a_failing_store_leaves_no_data_set_and_costs_only_its_own_shards(
    kaggle: Path, tmp_path: Path, dying: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, out = catalogue(kaggle), tmp_path / "dataset"
    real, refused = fetch, f"file://{kaggle}/train/NORMAL/IM-0003-0001.jpeg"

    def refuse(uri: str, etag: str) -> bytes:
        if uri == refused:
            raise ScanError(Reason.STORAGE_ERROR)
        return real(uri, etag)

    with dying(99), monkeypatch.context() as patch:
        patch.setattr(room, "fetch", refuse)
        with pytest.raises(IncompleteError, match=r"1 films could not be fetched, the first is .*IM-0003-0001"):
            prepare(catalog, str(out), SMALL)
    assert not (out / "dataset.json").exists()
    with dying(99) as begun:
        summary = prepare(catalog, str(out), SMALL)
    assert len(begun) == 1
    assert (summary.films, summary.unreadable) == (149, {})


def test_films_that_were_away_are_tried_again_under_new_names(kaggle: Path, tmp_path: Path, dying: Interrupt) -> None:
    catalog, out = catalogue(kaggle), str(tmp_path / "dataset")
    film = kaggle / "train/NORMAL/IM-0001-0001.jpeg"
    with dying(99):
        away = film.rename(tmp_path / "away.jpeg")
        assert prepare(catalog, out, SMALL).unreadable == {"vanished": 1}
        before = read_dataset_info(out).parts["train"]
        away.rename(film)
        with dying(0), pytest.raises(ClusterError):
            prepare(catalog, out, SMALL)
        load_films(out, "train")  # the data set in use is whole while it is prepared again
        assert prepare(catalog, out, SMALL).unreadable == {}
    assert not {*before} & {*read_dataset_info(out).parts["train"]}


def test_another_preparation_at_the_same_place_is_told(
    kaggle: Path, tmp_path: Path, dying: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dataset"
    real = room.own_keys
    with dying(99), monkeypatch.context() as patch:
        patch.setattr(room, "own_keys", lambda store: {key for key in real(store) if not key.endswith("3.parquet")})
        with pytest.raises(IncompleteError, match="does another `prepare` write here"):
            prepare(catalogue(kaggle), str(out), SMALL)


@pytest.mark.usefixtures("in_process")
def test_the_fit_is_in_the_pixels_the_manifest_and_the_fingerprint(kaggle: Path, tmp_path: Path) -> None:
    catalog = catalogue(kaggle, inspect=True)
    settings = {
        "squash": SMALL,
        "letterbox": PrepareSettings(size=32, fit="letterbox"),
        "harmonised": PrepareSettings(size=32, harmonise=True),
        "at 1.5": PrepareSettings(size=32, harmonise=True, aspect=1.5),
    }
    prints = set()
    for name, asked in settings.items():
        summary = prepare(catalog, str(tmp_path / name), asked)
        prints.add(summary.fingerprint)
        info, films = read_dataset_info(str(tmp_path / name)), load_films(str(tmp_path / name), "val")
        assert info.preprocessing.harmonise == summary.harmonise
        uris = {row["scan_id"]: row["uri"] for row in read_catalog(catalog).to_pylist()}
        data = Path(uris[films.scan_ids[0]].removeprefix("file://")).read_bytes()
        assert (films.pixels[0] == decode(data, info.preprocessing).pixels).all()
    assert len(prints) == 4
    assert read_dataset_info(str(tmp_path / "harmonised")).preprocessing.harmonise == 1.2  # 96 x 80, all of them
    wanted = read_dataset_info(str(tmp_path / "at 1.5")).preprocessing
    with pytest.raises(InputError, match=r"prepare the data set again with .* --harmonise --aspect 1\.5"):
        check_fits(wanted, read_dataset_info(str(tmp_path / "squash")), "squash")


@pytest.mark.usefixtures("in_process")
def test_harmonising_needs_to_know_the_shapes(kaggle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--harmonise needs the sizes of the films"):
        prepare(catalogue(kaggle), str(tmp_path / "out"), PrepareSettings(size=32, harmonise=True))
    with pytest.raises(InputError, match="add --harmonise"):
        PrepareSettings(aspect=1.5)
