"""What spoils a study is found and said in words."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.spec import DISCLAIMER
from pipelines.contracts import CATALOG, LABELS
from pipelines.errors import InputError
from pipelines.ingest.audit import Audit, audit
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.pages.audit import audit_page
from tests.pipelines.decoding.films import encode, ramp, write


def examine(archive: Path, **settings: object) -> Audit:
    out = str(archive.parent / "catalog")
    build_catalog(str(archive), out, CatalogSettings(patients="unknown", **settings))  # type: ignore[arg-type]
    return audit(out)


def test_a_clean_archive(kaggle: Path) -> None:
    found = examine(kaggle, labels="path", inspect=True)
    assert (found.scans, found.patients, found.shared_patients) == (151, 80, 0)
    assert (found.copies, found.copies_across, found.problems) == (0, 0, {})
    assert found.splits["test"] == {"NORMAL": 5, "PNEUMONIA": 6}
    assert all(0.5 <= value < 0.7 for value in found.shortcuts.values())
    assert found.verdicts == ("Nothing was found that would spoil a study.",)


def test_a_shortcut_in_the_files_is_named(tmp_path: Path) -> None:
    files = {f"NORMAL/{i}.jpeg": encode(ramp(96 + i % 3, 80), "jpeg", quality=98) for i in range(30)}
    files |= {f"PNEUMONIA/{i}.jpeg": encode(ramp(90 + i % 3, 80), "jpeg", quality=60) for i in range(30)}
    found = examine(write(tmp_path / "archive", files), labels="path", inspect=True)
    assert found.shortcuts["size"] == found.shortcuts["width"] == 1.0
    assert found.shortcuts["height"] == found.shortcuts["format"] == 0.5
    assert any("Image width alone separates the classes (AUC 1.0)" in line for line in found.verdicts)


def test_the_format_can_be_the_shortcut(tmp_path: Path) -> None:
    files = {f"NORMAL/{i}.png": encode(ramp()) for i in range(30)}
    files |= {f"PNEUMONIA/{i}.jpeg": encode(ramp(), "jpeg") for i in range(30)}
    assert examine(write(tmp_path / "archive", files), labels="path").shortcuts["format"] == 1.0


def test_copies_and_broken_files_are_counted(tmp_path: Path) -> None:
    same, other = encode(ramp()), encode(ramp(50, 50))
    files = {"NORMAL/a.png": same, "PNEUMONIA/b.png": same, "NORMAL/c.png": other, "NORMAL/d.png": other}
    files |= {"NORMAL/e.png": b"", "PNEUMONIA/f.png": b"text"}
    found = examine(write(tmp_path / "archive", files), labels="path", inspect=True)
    assert found.copies == 2
    assert found.copies_across
    assert found.copies_across >= 1
    assert found.problems == {"empty_file": 1, "unknown_format": 1}
    assert any("2 files cannot be read" in line for line in found.verdicts)


def test_empty_files_are_no_copies(tmp_path: Path) -> None:
    files = {"NORMAL/a.png": b"", "PNEUMONIA/b.png": b"", "NORMAL/c.png": encode(ramp()), "PNEUMONIA/d.png": b"text"}
    found = examine(write(tmp_path / "archive", files), labels="path", inspect=True)
    assert (found.copies, found.copies_across) == (0, 0)


def made(folder: Path, rows: list[dict[str, object]]) -> Audit:
    """The audit of a catalogue of these rows."""
    always = {"etag": "", "size": 1, "modified": datetime(2024, 1, 1, tzinfo=UTC)}
    table = pa.Table.from_pylist(
        [always | {"scan_id": f"{i}", "uri": f"{i}"} | row for i, row in enumerate(rows)], schema=CATALOG
    )
    pq.write_table(table, folder / "part.parquet")
    (folder / "catalog.json").write_text('{"parts": ["part.parquet"]}')
    return audit(str(folder))


@pytest.mark.parametrize(
    ("split", "label", "across"),
    [
        ("train", "NORMAL", 0),
        ("test", "NORMAL", 1),
        ("train", "PNEUMONIA", 1),
        # What serves no side and has no label spoils nothing.
        ("excluded", "NORMAL", 0),
        (None, None, 0),
    ],
)
def test_copies_across(tmp_path: Path, split: str | None, label: str | None, across: int) -> None:
    first = {"content_hash": "same", "split": "train", "label": "NORMAL"}
    found = made(tmp_path, [first, {"content_hash": "same", "split": split, "label": label}])
    assert (found.copies, found.copies_across) == (1, across)
    assert any("identical files" in line for line in found.verdicts) == bool(across)


def test_a_patient_on_two_sides_is_named(tmp_path: Path) -> None:
    splits = ("train", "val", "excluded", None)
    found = made(
        tmp_path,
        [
            {"label": LABELS[i % 2], "split": splits[i // 2], "patient_key": patient}
            for i, patient in enumerate("abacdbcd")
        ],
    )
    assert (found.patients, found.shared_patients) == (4, 1)
    assert "1 patients have films in two splits: results would be too good." in found.verdicts


def test_a_side_of_one_class_is_named(kaggle: Path) -> None:
    for path in (kaggle / "test/NORMAL").iterdir():
        path.unlink()
    found = examine(kaggle, labels="path", inspect=True)
    assert found.verdicts == ("test holds only PNEUMONIA: nothing can be learned or evaluated on it.",)


def test_without_inspect_it_says_what_it_did_not_see(kaggle: Path) -> None:
    found = examine(kaggle, labels="path")
    assert (found.copies, found.copies_across, found.problems) == (None, None, None)
    assert "width" not in found.shortcuts
    assert any("--inspect" in line for line in found.verdicts)


def test_an_archive_without_labels(kaggle: Path) -> None:
    found = examine(kaggle, inspect=True)
    assert (found.splits, found.shortcuts) == ({}, {})


def test_the_page_stands_alone_and_escapes(kaggle: Path) -> None:
    archive = kaggle.rename(kaggle.parent / "<script>archive")
    build_catalog(str(archive), str(archive.parent / "<i>catalog"), CatalogSettings(labels="path", inspect=True))
    page = audit_page(audit(str(archive.parent / "<i>catalog")))
    tags: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert not {name for name, _ in attrs} & {"src", "href"}

    Reader().feed(page)
    assert not tags & {"script", "link", "img", "iframe", "i"}
    assert DISCLAIMER in page
    assert "viewport" in page


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no catalogue here"):
        audit(str(tmp_path))


def test_the_known_shortcut_of_the_kermany_films(real_data: Path, tmp_path: Path) -> None:
    build_catalog(
        str(real_data / "kermany_original"), str(tmp_path / "catalog"), CatalogSettings(labels="path", inspect=True)
    )
    found = audit(str(tmp_path / "catalog"))
    assert found.scans == 300
    assert found.shortcuts["bytes_per_pixel"] > 0.95
