"""What spoils a study is found and said in words."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.spec import DISCLAIMER
from pipelines.contracts import CATALOG, LABELS
from pipelines.errors import InputError
from pipelines.ingest.audit import Audit, audit
from pipelines.ingest.catalog import CatalogSettings, build_catalog
from pipelines.ingest.looked import sample
from pipelines.ingest.near_copies import difference_hash, grouped, near_pairs, thumbnail
from pipelines.pages.audit import audit_page
from tests.pipelines.decoding.films import encode, ramp, write


def examine(archive: Path, films: int = 0, **settings: object) -> Audit:
    out = str(archive.parent / "catalog")
    build_catalog(str(archive), out, CatalogSettings(patients="unknown", **settings))  # type: ignore[arg-type]
    return audit(out, films)


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
    return audit(str(folder), films=0)


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
            assert (dict(attrs).get("href") or "#").startswith("#")
            assert (dict(attrs).get("src") or "data:").startswith("data:")

    Reader().feed(page)
    assert not tags & {"script", "link", "iframe", "i"}
    assert DISCLAIMER in page
    assert "viewport" in page


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no catalogue here"):
        audit(str(tmp_path))


def field(seed: int, width: int = 120, height: int = 100) -> npt.NDArray[np.uint8]:
    """A film like no other: a smooth random field."""
    coarse = np.random.default_rng(seed).integers(30, 226, (7, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def films_of(normal: Sequence[npt.NDArray[np.uint8]], ill: Sequence[npt.NDArray[np.uint8]]) -> dict[str, bytes]:
    files = {f"NORMAL/IM-{at:04d}-0001.png": encode(film) for at, film in enumerate(normal)}
    return files | {f"PNEUMONIA/person{at}_virus_{at}.png": encode(film) for at, film in enumerate(ill)}


def test_films_without_a_shortcut_are_told_apart_by_nothing(tmp_path: Path) -> None:
    files = films_of([field(i) for i in range(100)], [field(200 + i) for i in range(100)])
    found = examine(write(tmp_path / "archive", files), films=6000, labels="path", inspect=True)
    assert (found.films_read, found.near_copies, found.near_copies_across, found.label_conflicts) == (200, 0, 0, 0)
    assert found.aspect == 1.2
    assert all(value is None or value < 0.7 for probe in found.probes.values() for value in probe.values())
    assert not any("border" in line for line in found.verdicts)


def test_a_marker_in_the_corner_leaks_and_harmonising_takes_it_away(tmp_path: Path) -> None:
    def marked(seed: int) -> npt.NDArray[np.uint8]:
        film = field(seed).copy() // 2
        film[1:5, 1:6] = 255
        return film

    files = films_of([field(i) // 2 for i in range(100)], [marked(200 + i) for i in range(100)])
    found = examine(write(tmp_path / "archive", files), films=6000, labels="path", inspect=True)
    before, after = found.probes["border"]["before"], found.probes["border"]["after"]
    assert before is not None
    assert after is not None
    assert before > 0.9
    assert after < 0.7
    assert (found.border_parts["corners"] or 0) > 0.95
    assert (found.border_parts["text"] or 0) > 0.9
    assert (found.border_parts["bottom"] or 0) < 0.75
    assert any("The border of the films alone separates the classes" in line for line in found.verdicts)
    json.dumps(found.to_json())


def test_quality_and_shape_of_the_files_leak(tmp_path: Path) -> None:
    files = {f"NORMAL/IM-{i:04d}-0001.jpeg": encode(field(i, 100, 100), "jpeg", quality=95) for i in range(25)}
    files |= {
        f"PNEUMONIA/person{i}_virus_{i}.jpeg": encode(field(i + 50, 150, 100), "jpeg", quality=60) for i in range(25)
    }
    found = examine(write(tmp_path / "archive", files), films=6000, labels="path", inspect=True)
    assert found.shortcuts["aspect_ratio"] == found.shortcuts["jpeg_quality"] == 1.0
    assert found.probes["file"] == {"before": 1.0, "after": None}
    assert found.looked
    assert {round(film.quality) for film in found.looked.films} == {60, 95}


def test_the_same_image_is_found_whatever_its_bytes(tmp_path: Path) -> None:
    films = [field(i) for i in range(12)]
    files = films_of(films[:6], films[6:])
    shrunk = Image.fromarray(films[0]).resize((96, 80), Image.Resampling.BILINEAR)
    files["PNEUMONIA/person77_virus_1.jpeg"] = encode(shrunk, "jpeg", quality=60)
    files["PNEUMONIA/person6_virus_2.png"] = encode((films[6] * 0.8 + 20).astype(np.uint8))
    files["NORMAL/broken.png"] = encode(films[1])[:900]
    found = examine(write(tmp_path / "archive", files), films=6000, labels="path", inspect=True)
    assert (found.copies, found.near_copies, found.label_conflicts) == (0, 2, 1)
    assert found.films_unread == {"truncated": 1}
    assert any("1 groups of films that show the same image have two labels" in line for line in found.verdicts)
    page = audit_page(found)
    assert "person77" not in page
    assert "2 of 2 groups" in page


def test_the_sample_is_bounded_balanced_and_does_not_hang_on_the_order() -> None:
    rows: list[dict[str, Any]] = [
        {"scan_id": f"{i:032x}", "label": label}
        for i, label in enumerate(["NORMAL"] * 10 + ["PNEUMONIA"] * 90 + [None] * 50)
    ]
    drawn = sample(rows, 30)
    assert Counter(row["label"] for row in drawn) == {"NORMAL": 10, "PNEUMONIA": 20}
    assert sample(rows[::-1], 30) == drawn
    assert len(sample(rows, 1000)) == 150


def test_all_near_pairs_are_found_across_blocks_of_the_search() -> None:
    films = [field(i % 500, 40, 40) for i in range(600)]
    hashes, thumbs = np.stack([difference_hash(f) for f in films]), np.stack([thumbnail(f) for f in films])
    assert [(int(a), int(b)) for a, b in near_pairs(hashes, thumbs)] == [(i, i + 500) for i in range(100)]
    assert grouped(np.array([[0, 3], [3, 9], [4, 5]])) == [[0, 3, 9], [4, 5]]


def test_the_known_shortcut_of_the_kermany_films(real_data: Path, tmp_path: Path) -> None:
    build_catalog(
        str(real_data / "kermany_original"), str(tmp_path / "catalog"), CatalogSettings(labels="path", inspect=True)
    )
    found = audit(str(tmp_path / "catalog"))
    assert (found.scans, found.films_read, found.near_copies) == (300, 300, 0)
    assert found.shortcuts["bytes_per_pixel"] > 0.95
    assert found.shortcuts["aspect_ratio"] == 0.888
    # How far each falls differs by up to 0.01 between processors: their linear algebra sums in another order.
    for name, fall in (("texture", 0.02), ("border", 0.06), ("inside", 0.06)):
        probe = found.probes[name]
        assert probe["before"]
        assert probe["after"]
        assert probe["after"] < probe["before"] - fall
    centre = found.probes["centre"]
    assert centre["before"]
    assert centre["after"]
    assert centre["after"] > centre["before"] - 0.03
