"""What a catalogue says of an archive, on local disk and on a real S3 server."""

import json
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import CATALOG, EXCLUDED, scan_id
from pipelines.errors import InputError, NotFoundError
from pipelines.ingest import catalog as room
from pipelines.ingest import listing, walk
from pipelines.ingest.catalog import CatalogSettings, build_catalog, is_catalog, read_catalog
from pipelines.ingest.patients import SECRET_VARIABLE
from pipelines.storage import open_store
from tests.pipelines.decoding.films import SECRETS, dicom, encode, ramp, write
from tests.servers import S3Server

FILM = ramp()


def rows(catalog: Path | str) -> dict[str, dict[str, object]]:
    """The rows by file name."""
    return {row["uri"].rpartition("/")[2]: row for row in read_catalog(str(catalog)).to_pylist()}


def build(archive: Path, **settings: object) -> dict[str, dict[str, object]]:
    out = archive.parent / "catalog"
    build_catalog(str(archive), str(out), CatalogSettings(**settings))  # type: ignore[arg-type]
    return rows(out)


def test_a_listing_without_labels(kaggle: Path) -> None:
    out = str(kaggle.parent / "catalog")
    summary = build_catalog(str(kaggle), out, CatalogSettings(site="north"))
    table = read_catalog(out)
    assert table.schema.equals(CATALOG)
    assert summary.scans == table.num_rows == 151
    assert summary.ignored == 5
    assert summary.ignored_by == {
        "other_file": {"count": 4, "example": summary.ignored_by["other_file"]["example"]},
        "hidden": {"count": 1, "example": ".DS_Store"},
    }
    assert summary.formats == {"jpeg": 151}
    assert set(table["site"].to_pylist()) == {"north"}
    for name in ("label", "split", "patient_key", "width", "problem", "content_hash"):
        assert table[name].null_count == table.num_rows
    store = open_store(str(kaggle))
    info = {store.uri(info.key): info for chunk in store.list() for info in chunk}
    for row in table.to_pylist():
        assert row["scan_id"] == scan_id(row["uri"], info[row["uri"]].etag)
        assert row["size"] == info[row["uri"]].size


def test_labels_and_splits_from_kaggles_folders(kaggle: Path) -> None:
    found = build(kaggle, labels="path")
    assert found["IM-0003-0001-0002.jpeg"]["label"] == "NORMAL"
    assert found["person3_bacteria_7.jpeg"]["label"] == "PNEUMONIA"
    assert found["person3_bacteria_7.jpeg"]["subtype"] == "bacteria"
    sides = defaultdict(set)
    for row in found.values():
        sides[row["patient_key"]].add(row["split"])
    assert all(len(side - {EXCLUDED}) == 1 for side in sides.values())
    assert len(sides) == 30 + 40 + 5 + 5
    # test stays test, and only it; the train films of its patient serve nothing; Kaggle's small val is dealt anew.
    assert {name for name, row in found.items() if row["split"] == "test"} == {
        name for name, row in found.items() if "/test/" in str(row["uri"])
    }
    assert {name for name, row in found.items() if row["split"] == EXCLUDED} == {
        "person1_bacteria_2.jpeg",
        "person1_bacteria_3.jpeg",
    }
    val = [row["label"] for row in found.values() if row["split"] == "val"]
    assert 0.12 < len(val) / 138 < 0.18
    assert set(val) == {"NORMAL", "PNEUMONIA"}


def test_splits_depend_on_the_seed_and_not_on_the_secret(kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(kaggle, labels="path")
    monkeypatch.setenv(SECRET_VARIABLE, "hush, hush, hush!")
    second = build(kaggle, labels="path")
    third = build(kaggle, labels="path", seed=1)
    assert [row["split"] for row in first.values()] == [row["split"] for row in second.values()]
    assert [row["split"] for row in first.values()] != [row["split"] for row in third.values()]
    assert first["IM-0000-0001.jpeg"]["patient_key"] != second["IM-0000-0001.jpeg"]["patient_key"]
    assert second["IM-0000-0001.jpeg"]["patient_key"] == third["IM-0000-0001.jpeg"]["patient_key"]


def test_a_flat_archive_gets_a_test_split(tmp_path: Path) -> None:
    archive = write(
        tmp_path / "archive", {f"{label}/{i}.jpeg": b"x" for label in ("normal", "Pneumonia") for i in range(40)}
    )
    splits = [row["split"] for row in build_all(archive)]
    assert {name: splits.count(name) for name in ("train", "val", "test")} == {"train": 56, "val": 12, "test": 12}


def build_all(archive: Path) -> list[dict[str, object]]:
    """The rows where names repeat."""
    out = str(archive.parent / "catalog")
    build_catalog(str(archive), out, CatalogSettings(labels="path", patients="unknown"))
    found: list[dict[str, object]] = read_catalog(out).to_pylist()
    return found


def csv_archive(folder: Path, text: str) -> tuple[Path, str]:
    archive = write(folder / "archive", {f"{name}.dcm": b"x" for name in "abcd"})
    labels = folder / "labels.csv"
    labels.write_text(text)
    return archive, str(labels)


def test_labels_from_a_csv(tmp_path: Path) -> None:
    archive, labels = csv_archive(
        tmp_path,
        "path,label,subtype,patient_id,split,site\n"
        "a.dcm,PNEUMONIA,virus,MRN-1,train,north\nb.dcm,0,,MRN-2,val,\nc.dcm,normal,,MRN-1,train,north\n",
    )
    found = build(archive, labels=labels, site="south")
    assert {name[0]: row["label"] for name, row in found.items()} == {
        "a": "PNEUMONIA",
        "b": "NORMAL",
        "c": "NORMAL",
        "d": None,
    }
    assert {name[0]: row["split"] for name, row in found.items()} == {"a": "train", "b": "val", "c": "train", "d": None}
    assert [found[name]["site"] for name in ("a.dcm", "b.dcm")] == ["north", "south"]
    assert found["a.dcm"]["subtype"] == "virus"
    assert found["a.dcm"]["patient_key"] == found["c.dcm"]["patient_key"] != found["b.dcm"]["patient_key"]


def test_a_csv_by_uri(tmp_path: Path) -> None:
    archive, labels = csv_archive(tmp_path, "")
    Path(labels).write_text(f"uri,label\nfile://{archive}/a.dcm,1\nfile://{archive}/b.dcm,0\n")
    assert build(archive, labels=labels, patients="unknown")["a.dcm"]["label"] == "PNEUMONIA"


def test_a_csv_line_without_a_file_is_named(tmp_path: Path) -> None:
    archive, labels = csv_archive(tmp_path, "path,label\na.dcm,1\nz.dcm,0\ny.dcm,0\n")
    with pytest.raises(InputError, match=r"labels\.csv, line 3: .*/z\.dcm is not in the archive \(2 such lines\)"):
        build(archive, labels=labels)


@pytest.mark.parametrize("text", ["path,label\n", "path,label\na.dcm,\n"], ids=["no lines", "no label"])
def test_a_csv_without_labels_is_refused(tmp_path: Path, text: str) -> None:
    archive, labels = csv_archive(tmp_path, text)
    with pytest.raises(InputError, match="no label was found"):
        build(archive, labels=labels)


def test_raw_patient_ids_of_a_csv_are_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive, labels = csv_archive(tmp_path, "path,label,patient_id\na.dcm,1,SECRET-4711\nb.dcm,0,\n")
    found = build(archive, labels=labels, patients="unknown")
    assert found["a.dcm"]["patient_key"]
    assert found["b.dcm"]["patient_key"] is None
    written = b"".join(path.read_bytes() for path in (tmp_path / "catalog").iterdir())
    assert b"SECRET-4711" not in written
    assert b"4711" not in caplog.text.encode()
    assert "1 films have no patient id" in caplog.text


def test_inspect_reads_every_file(tmp_path: Path) -> None:
    jpeg = encode(FILM, "jpeg")
    archive = write(
        tmp_path / "archive",
        {
            "film": dicom(FILM),
            "other": dicom(FILM, PatientID="MRN-7", Modality="CR", ViewPosition="LL"),
            "a.jpeg": jpeg,
            "b.dcm": jpeg,
            "empty.png": b"",
            "scan.jpg": b"words",
        },
    )
    found = build(archive, inspect=True)
    film = found["film"]
    assert (film["format"], film["width"], film["height"], film["study_date"]) == ("dicom", 96, 80, date(2024, 2, 29))
    assert (film["modality"], film["body_part"], film["view"]) == ("DX", "CHEST", "PA")
    assert found["other"]["modality"] == "CR"
    assert film["patient_key"] != found["other"]["patient_key"]
    assert found["b.dcm"]["format"] == "jpeg"
    assert found["a.jpeg"]["content_hash"] == found["b.dcm"]["content_hash"] != film["content_hash"]
    assert {name: row["problem"] for name, row in found.items() if row["problem"]} == {
        "empty.png": "empty_file",
        "scan.jpg": "unknown_format",
    }
    for path in (tmp_path / "catalog").iterdir():
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS)


def test_patients_of_dicom_headers_split_together(tmp_path: Path) -> None:
    files = {f"{label}/{p}-{i}": dicom(np.full((8, 8), 9 * i + p, np.uint8), PatientID=f"{label}{p}")
             for label in ("NORMAL", "PNEUMONIA") for p in range(12) for i in range(3)}  # fmt: skip
    found = build(write(tmp_path / "archive", files), labels="path", inspect=True)
    sides = defaultdict(set)
    for row in found.values():
        sides[row["patient_key"]].add(row["split"])
    assert all(len(side) == 1 for side in sides.values())


def test_a_header_knows_the_patient_better_than_a_file_name(tmp_path: Path) -> None:
    # Viewers export every patient's films under the same names: series and number, not patient and film.
    files = {f"{label}/{p}/IM-000{i}-0001.dcm": dicom(np.full((8, 8), 9 * i + p, np.uint8), PatientID=f"{label}{p}")
             for label in ("NORMAL", "PNEUMONIA") for p in range(4) for i in range(2)}  # fmt: skip
    archive = write(tmp_path / "archive", files)
    build_catalog(str(archive), str(tmp_path / "catalog"), CatalogSettings(labels="path", inspect=True))
    keys = defaultdict(set)
    for row in read_catalog(str(tmp_path / "catalog")).to_pylist():
        keys[row["uri"].rpartition("/")[0]].add(row["patient_key"])
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == 8


def test_a_csv_knows_the_patient_better_than_a_header(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive", {f"{i}.dcm": dicom(FILM, PatientID=f"header{i}") for i in range(3)})
    (tmp_path / "labels.csv").write_text("path,label,patient_id\n0.dcm,1,one\n1.dcm,1,one\n2.dcm,0,\n")
    found = build(archive, labels=str(tmp_path / "labels.csv"), inspect=True)
    keys = [found[f"{i}.dcm"]["patient_key"] for i in range(3)]
    assert keys[0] == keys[1] != keys[2] is not None


@pytest.mark.parametrize("labels", [None, "path"])
def test_a_catalogue_of_several_parts(kaggle: Path, monkeypatch: pytest.MonkeyPatch, labels: str | None) -> None:
    monkeypatch.setattr(room, "ROWS_PER_PART", 40)
    monkeypatch.setattr(listing, "ROWS_PER_CHUNK", 10)
    monkeypatch.setattr(walk, "BATCH", 10)
    found = build(kaggle, labels=labels)
    parts = sorted(path.name for path in (kaggle.parent / "catalog").glob("*.parquet"))
    # Labelled rows are finished together, and so come as one part.
    assert len(parts) == 1 if labels else len(parts) > 1
    assert json.loads((kaggle.parent / "catalog/catalog.json").read_text())["parts"] == parts
    assert len(found) == 151
    build(kaggle)
    assert not set(parts) & {path.name for path in (kaggle.parent / "catalog").glob("*.parquet")}


def test_a_catalogue_is_replaced_whole(kaggle: Path) -> None:
    build(kaggle, labels="path")
    build(kaggle)
    assert len(list((kaggle.parent / "catalog").glob("*.parquet"))) == 1
    assert read_catalog(str(kaggle.parent / "catalog"), columns=["uri", "size"]).column_names == ["uri", "size"]


def test_what_is_no_catalogue(kaggle: Path, tmp_path: Path) -> None:
    assert not is_catalog(str(kaggle))
    assert not is_catalog(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no catalogue here"):
        read_catalog(str(kaggle))
    build(kaggle)
    assert is_catalog(str(kaggle.parent / "catalog"))


def test_unusable_archives(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(NotFoundError):
        build_catalog(str(tmp_path / "absent"), out, CatalogSettings())
    empty = write(tmp_path / "empty", {"readme.txt": b"x"})
    with pytest.raises(InputError, match="no scans here"):
        build_catalog(str(empty), out, CatalogSettings())
    with pytest.raises(InputError, match="no scans here"):
        build_catalog(str(empty), out, CatalogSettings(labels="path"))
    assert not list(Path(tmp_path).glob("out/*")), "a refused archive leaves no part behind"
    bare = write(tmp_path / "bare", {"a.jpeg": b"x"})
    with pytest.raises(InputError, match="no label was found"):
        build_catalog(str(bare), out, CatalogSettings(labels="path"))
    assert not is_catalog(out)
    with pytest.raises(InputError, match="below 1"):
        CatalogSettings(val_fraction=0.6, test_fraction=0.5)


def test_on_s3(s3: S3Server, kaggle: Path) -> None:
    root = s3.bucket()
    store = open_store(f"{root}/archive")
    for path in sorted(kaggle.rglob("*.jpeg"))[:20]:
        store.put(str(path.relative_to(kaggle)), path.read_bytes())
    build_catalog(f"{root}/archive", f"{root}/catalog", CatalogSettings(labels="path", inspect=True))
    assert is_catalog(f"{root}/catalog")
    found = rows(f"{root}/catalog")
    assert len(found) == 20
    assert all(str(row["uri"]).startswith(f"{root}/archive/") and row["width"] == 96 for row in found.values())


def test_labelled_films_without_patients_are_refused(tmp_path: Path) -> None:
    archive = write(
        tmp_path / "archive", {f"{label}/{i}.jpeg": b"x" for label in ("NORMAL", "PNEUMONIA") for i in range(9)}
    )
    with pytest.raises(InputError, match=r"18 of the 18 labelled films name no patient.*--patients unknown") as caught:
        build(archive, labels="path")
    assert "\n" not in str(caught.value)
    assert not is_catalog(str(tmp_path / "catalog"))
    assert len(build(archive, labels="path", patients="unknown")) == 9
    # Films that are all of one split cannot be trained on and tested on.
    lines = [f"{path.relative_to(archive)},{path.parent.name},test" for path in archive.rglob("*.jpeg")]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    build(archive, labels=str(tmp_path / "labels.csv"))


def test_placeholders_are_told_and_are_no_patients(tmp_path: Path) -> None:
    files = {f"{label}/{i}.dcm": dicom(np.full((8, 8), i, np.uint8), PatientID="ANON" if i < 2 else f"{label}{i}")
             for label in ("NORMAL", "PNEUMONIA") for i in range(12)}  # fmt: skip
    archive = write(tmp_path / "archive", files)
    settings = CatalogSettings(labels="path", inspect=True)
    summary = build_catalog(str(archive), str(tmp_path / "catalog"), settings)
    assert (summary.placeholder_ids, summary.patients) == (4, 20)


def test_the_site_stands_for_the_issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "hush, hush, hush!")
    archive = write(tmp_path / "archive", {"a.dcm": dicom(FILM, PatientID="4711")})
    keys = {build(archive, inspect=True, site=site)["a.dcm"]["patient_key"] for site in ("north", "south", None)}
    assert len(keys) == 3
