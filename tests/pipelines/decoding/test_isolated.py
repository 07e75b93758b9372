"""Films read in a child: the same pixels as in place, and deadly ones cost only themselves."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.intended_use import IntendedUse
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.film import FilmResult, ReadSettings, read_film
from pipelines.decoding.isolated import IsolatedReader
from pipelines.phantom import broken_files, dicom_bytes, encode
from pipelines.provenance import Provenance
from pipelines.storage import open_store
from tests.deadly import DEADLY, deadly_environment

SMALL = ReadSettings(
    preprocessing=Preprocessing(size=64),
    intended_use=IntendedUse(views=("PA",)),
    provenance=Provenance(site="north", secret="long enough to be one"),
)
FILM = np.random.default_rng(0).integers(0, 255, (90, 80), dtype=np.uint8)
Scan = tuple[str, str, int]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes], Scan]:
    """Puts bytes into an archive and gives URI, etag and size of the scan."""
    store = open_store(str(tmp_path / "archive"))

    def put(data: bytes) -> Scan:
        store.put("scan", data)
        return store.uri("scan"), store.head("scan").etag, len(data)

    return put


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedReader]:
    monkeypatch.setenv("PYTHONPATH", "")
    reader = IsolatedReader(SMALL, deadline=5, memory=3 << 30)
    yield reader
    reader.close()


def comparable(film: FilmResult) -> dict[str, object]:
    values = {**vars(film), "fetch_seconds": 0.0, "decode_seconds": 0.0, "pixels": None}
    return {**values, "film": None if film.pixels is None else film.pixels.tolist()}


@pytest.mark.parametrize(
    "data", [encode(FILM, "jpeg"), encode(FILM, "png"), dicom_bytes(FILM, view="LL"), dicom_bytes(FILM, view="AP")]
)
def test_a_film_is_read_as_it_is_in_place(
    isolated: IsolatedReader, stored: Callable[[bytes], Scan], data: bytes
) -> None:
    scan = stored(data)
    assert comparable(isolated(*scan)) == comparable(read_film(*scan, SMALL))


@pytest.mark.parametrize("name", sorted(broken_files(1)))
def test_a_broken_file_has_the_same_reason(
    isolated: IsolatedReader, stored: Callable[[bytes], Scan], name: str
) -> None:
    scan = stored(broken_files(1)[name])
    film = isolated(*scan)
    assert film.reason is not None
    assert comparable(film) == comparable(read_film(*scan, SMALL))


def test_what_the_store_says_is_told(isolated: IsolatedReader, stored: Callable[[bytes], Scan]) -> None:
    uri, _, size = stored(encode(FILM, "png"))
    assert isolated(uri, "another", size).reason is Reason.CHANGED
    assert isolated(uri + "x", "none", size).reason is Reason.VANISHED


def test_a_file_larger_than_any_film_is_not_fetched(isolated: IsolatedReader) -> None:
    film = isolated("file:///nowhere/huge.dcm", "etag", 3 << 30)
    assert (film.reason, film.detail, film.size) == (Reason.TOO_LARGE, "3.0 GiB", 0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("abort", Reason.CRASHED),
        ("segfault", Reason.CRASHED),
        ("exit", Reason.CRASHED),
        ("hang", Reason.TIMED_OUT),
        ("hang_in_c", Reason.TIMED_OUT),
        ("memory", Reason.OUT_OF_MEMORY),
        ("killed", Reason.OUT_OF_MEMORY),
    ],
)
def test_a_deadly_film_is_named_and_the_next_is_fine(
    kind: str, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Callable[[bytes], Scan]
) -> None:
    monkeypatch.syspath_prepend(str(deadly_environment(tmp_path)))
    isolated = IsolatedReader(SMALL, deadline=0.5 if kind == "hang_in_c" else 2, memory=3 << 30)
    assert isolated(*stored(DEADLY[kind])).reason is reason
    assert isolated(*stored(encode(FILM, "png"))).size
    isolated.close()
    assert not [child for child in psutil.Process().children() if "pipelines.decoding.isolated" in child.cmdline()]


def test_the_secret_of_the_patients_is_not_among_the_arguments_of_a_child(isolated: IsolatedReader) -> None:
    child = isolated._children._start()
    assert "long enough" not in " ".join(psutil.Process(child._process.pid).cmdline())
    child.close()


def test_a_hanging_child_outlives_its_parent_by_a_deadline_at_most(
    tmp_path: Path, stored: Callable[[bytes], Scan]
) -> None:
    uri, etag, size = stored(DEADLY["hang"])
    folder = deadly_environment(tmp_path)
    script = (
        "from models.spec import Preprocessing\n"
        "import json, sys\n"
        "from dataclasses import asdict\n"
        "from pipelines.decoding.film import ReadSettings\n"
        "from pipelines.decoding.isolated import IsolatedReader\n"
        "import os, threading\n"
        "settings = ReadSettings(preprocessing=Preprocessing(size=64))\n"
        "decoder = IsolatedReader(settings, deadline=3, memory=3 << 30)\n"
        "print(decoder._children._start()._process.pid, flush=True)\n"
        "child = decoder._children._start()\n"
        "print(child._process.pid, flush=True)\n"
        "asked = {'uri': sys.argv[1], 'etag': sys.argv[2], 'size': int(sys.argv[3]), 'settings': asdict(settings)}\n"
        "threading.Thread(target=child.ask, args=(json.dumps(asked).encode(),), daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"}
    command = [sys.executable, "-c", script, uri, etag, str(size)]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    children = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    parent.communicate()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) == 2
    assert not alive
