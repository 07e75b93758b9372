"""`catalog --inspect`: on Ray, only what is new, and never on what a failing store left out."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import Reason
from pipelines.decoding.fetch import fetch
from pipelines.errors import ScanError, StorageError
from pipelines.ingest import inspect as room
from pipelines.ingest.catalog import CatalogSettings, CatalogSummary, build_catalog, is_catalog, read_catalog
from pipelines.ingest.patients import SECRET_VARIABLE
from pipelines.pools import ActorLimits
from tests.pipelines.decoding.films import SECRETS, dicom, ramp, write

SECRET = "a secret of the tests"


def film(number: int, patient: str) -> bytes:
    return dicom(np.full((8, 8), number, np.uint8), PatientID=patient)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    files = {f"{label}/{p}-{i}.dcm": film(9 * i + p, f"{label}{p}")
             for label in ("NORMAL", "PNEUMONIA") for p in range(8) for i in range(2)}  # fmt: skip
    return write(tmp_path / "archive", files)


def build(archive: Path, **chosen: object) -> CatalogSummary:
    settings = CatalogSettings(inspect=True, **chosen)  # type: ignore[arg-type]
    return build_catalog(str(archive), str(archive.parent / "catalog"), settings)


def rows(archive: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_catalog(str(archive.parent / "catalog")).sort_by("uri").to_pylist()
    return found


@pytest.mark.parametrize("labels", [None, "path"])
def test_only_new_and_changed_files_are_read_again(
    archive: Path, monkeypatch: pytest.MonkeyPatch, labels: str | None
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    assert build(archive, labels=labels).read_again == 32
    assert build(archive, labels=labels).read_again == 0
    write(archive, {"NORMAL/new.dcm": film(1, "NORMAL3"), "NORMAL/0-0.dcm": film(2, "NORMAL1"), "PNEUMONIA/x.dcm": b""})
    assert build(archive, labels=labels).read_again == 3
    taken_up = rows(archive)
    (archive.parent / "catalog/catalog.json").unlink()
    assert build(archive, labels=labels).read_again == 34
    assert rows(archive) == taken_up
    kept = sorted(path.name for path in (archive.parent / "catalog").glob("inspected-*"))
    assert len(kept) == 2, "one that was left when its catalog.json was taken away, one in use"


def test_keys_of_two_secrets_are_never_mixed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    build(archive)
    monkeypatch.setenv(SECRET_VARIABLE, SECRET + "2")
    assert build(archive).read_again == 32
    monkeypatch.delenv(SECRET_VARIABLE)
    assert build(archive).read_again == 32
    assert build(archive).read_again == 32


def test_without_patients_no_secret_is_needed(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive", {"a.dcm": dicom(ramp(), PatientID=""), "b.dcm": b""})
    assert [build(archive).read_again for _ in range(2)] == [2, 0]


def test_splits_do_not_depend_on_a_random_secret(archive: Path) -> None:
    build(archive, labels="path")
    first = [row["split"] for row in rows(archive)]
    build(archive, labels="path")
    assert [row["split"] for row in rows(archive)] == first


def test_a_failing_store_leaves_no_catalogue(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(uri: str, etag: str) -> bytes:
        if uri.endswith("3-1.dcm"):
            raise ScanError(Reason.STORAGE_ERROR)
        return fetch(uri, etag)

    monkeypatch.setattr(room, "fetch", failing)
    with pytest.raises(
        StorageError, match=r"2 files could not be fetched, the first is .*3-1\.dcm; make the cat"
    ) as caught:
        build(archive, labels="path")
    assert caught.value.exit_code == 1
    assert not is_catalog(str(archive.parent / "catalog"))


def test_nothing_raw_is_kept(tmp_path: Path) -> None:
    archive = write(tmp_path / "archive", {"a.dcm": dicom(ramp())})
    build(archive)
    (kept,) = (tmp_path / "catalog").glob("inspected-*")
    assert pq.read_table(kept)["identity"].null_count == 1
    assert not any(secret.encode() in kept.read_bytes() for secret in SECRETS)


def test_on_ray(ray_session: None, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FILES_PER_SHARD", 10)
    summary = build(archive, labels="path", actors=ActorLimits(max_actors=2))
    assert (summary.read_again, summary.patients, summary.problems) == (32, 16, {})
    assert all(row["width"] == 8 and row["content_hash"] for row in rows(archive))
