"""Which page belongs to what lies at a URI, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from cluster.report import write_report
from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from tests.pipelines.pages.samples import (
    Outcome,
    write_bundle,
    write_run,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "it"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"compare": "a,b"}, "is a bundle; to compare models use rayscan evaluate --against"),
        ({"thumbnails": 3}, "is a bundle; thumbnails can be had of scores only"),
    ],
)
def test_what_a_bundle_has_not(store: Store, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    write_bundle(store.path)
    with pytest.raises(InputError, match=says):
        write_report(store.root, str(tmp_path / "r.html"), **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"compare": "a"}, "--compare takes two model ids"),
        ({"compare": "a,b,c"}, "--compare takes two model ids"),
        ({"compare": "a,b", "thumbnails": 2}, "thumbnails belong to the night report"),
        ({"thumbnails": -1}, "thumbnails are out of range; choose 0 to 100"),
        ({"thumbnails": 101}, "thumbnails are out of range; choose 0 to 100"),
    ],
)
def test_what_cannot_be_asked_of_scores(store: Store, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    write_run(store, 0, [Outcome(1, probability=0.3)])
    with pytest.raises(InputError, match=says):
        write_report(store.root, str(tmp_path / "r.html"), **asked)


@pytest.mark.parametrize("made", [True, False])
def test_an_unknown_folder_says_what_was_looked_for(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "strange"
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match=r"strange: nothing to report on.*study\.json.*bundle\.json.*runs/"):
        write_report(str(folder), str(tmp_path / "r.html"))
    assert not (tmp_path / "r.html").exists()
