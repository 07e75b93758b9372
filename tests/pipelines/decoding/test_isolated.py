"""Films decoded in a child: the same pixels as in place, and deadly ones cost only themselves."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.decode import decode
from pipelines.decoding.isolated import IsolatedDecoder
from pipelines.errors import UnreadableScanError
from pipelines.phantom import broken_files, dicom_bytes, encode
from tests.deadly import DEADLY, deadly_environment

SMALL = Preprocessing(size=64)
FILM = np.random.default_rng(0).integers(0, 255, (90, 80), dtype=np.uint8)


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    monkeypatch.setenv("PYTHONPATH", "")
    decoder = IsolatedDecoder(SMALL, deadline=5, memory=3 << 30)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("data", [encode(FILM, "jpeg"), encode(FILM, "png"), dicom_bytes(FILM, view="PA")])
def test_a_film_decodes_as_it_does_in_place(isolated: IsolatedDecoder, data: bytes) -> None:
    here, there = decode(data, SMALL), isolated(data)
    assert (there.pixels == here.pixels).all()
    assert there.tags == here.tags
    assert (there.header.width, there.header.height, there.header.format) == (80, 90, here.header.format)


@pytest.mark.parametrize("name", sorted(broken_files(1)))
def test_a_broken_file_has_the_same_reason(isolated: IsolatedDecoder, name: str) -> None:
    data = broken_files(1)[name]

    def outcome(decoder: object) -> str:
        try:
            decoder(data)  # type: ignore[operator]
        except UnreadableScanError as error:
            return error.reason
        return "film"

    assert outcome(isolated) == outcome(lambda data: decode(data, SMALL))


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
    kind: str, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(deadly_environment(tmp_path)))
    isolated = IsolatedDecoder(SMALL, deadline=2, memory=3 << 30)
    with pytest.raises(UnreadableScanError) as caught:
        isolated(DEADLY[kind])
    assert caught.value.reason is reason
    assert isolated(encode(FILM, "png")).pixels.shape == (64, 64)
    isolated.close()
    assert not [child for child in psutil.Process().children() if "pipelines.decoding.isolated" in child.cmdline()]


def test_a_hanging_child_outlives_its_parent_by_a_deadline_at_most(tmp_path: Path) -> None:
    folder = deadly_environment(tmp_path)
    script = (
        "from models.spec import Preprocessing\n"
        "from pipelines.decoding.isolated import IsolatedDecoder\n"
        "from tests.deadly import DEADLY\n"
        "import os, threading\n"
        "decoder = IsolatedDecoder(Preprocessing(size=64), deadline=3, memory=3 << 30)\n"
        "print(decoder._children._start()._process.pid, flush=True)\n"
        "child = decoder._children._start()\n"
        "print(child._process.pid, flush=True)\n"
        "threading.Thread(target=child.ask, args=(DEADLY['hang'],), daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    children = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    parent.communicate()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) == 2
    assert not alive
