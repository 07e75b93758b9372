"""JPEG lossless and JPEG-LS: read as stored, and a frame that kills the decoder costs one film only."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding import lossless
from pipelines.decoding.decode import decode
from pipelines.decoding.dicom import read_grey
from pipelines.decoding.isolated import IsolatedDecoder
from pipelines.errors import UnreadableScanError
from tests.pipelines.decoding.films import dicom, ramp

FILM = ramp()
Compress = Callable[[bytes, str], bytes]


@pytest.fixture
def compress(tmp_path: Path) -> Compress:
    """Compress a DICOM file with GDCM's own tool."""

    def run(data: bytes, option: str) -> bytes:
        plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
        plain.write_bytes(data)
        tool = Path(sys.executable).with_name("gdcmconv")
        subprocess.run([tool, option, plain, packed], check=True, capture_output=True)
        return packed.read_bytes()

    return run


def plain(bits: int) -> bytes:
    ids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
    if bits == 8:
        return dicom(FILM, WindowCenter=128, WindowWidth=256, **ids)
    stored = FILM.astype(np.uint16) * 16
    return dicom(stored, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096, **ids)


@pytest.mark.parametrize("option", ["--jpeg", "--jpegls", "--rle", "--j2k"])
@pytest.mark.parametrize("bits", [8, 12])
def test_nothing_is_lost(compress: Compress, option: str, bits: int) -> None:
    packed = compress(plain(bits), option)
    assert len(packed) != len(plain(bits))
    assert (read_grey(packed)[0] == read_grey(plain(bits))[0]).all()


@pytest.mark.parametrize("memory", [3 << 30, lossless.MEMORY])
def test_it_is_read_in_isolation_too_where_less_memory_is_allowed(compress: Compress, memory: int) -> None:
    packed = compress(plain(8), "--jpeg")
    with closing(IsolatedDecoder(Preprocessing(size=64), memory=memory)) as isolated:
        assert (isolated(packed).pixels == decode(packed, Preprocessing(size=64)).pixels).all()


def test_a_frame_that_kills_the_decoder_costs_one_film_and_the_next_is_fine(compress: Compress) -> None:
    good = compress(plain(8), "--jpeg")
    deadly = good.replace(b"\xff\xc4\x00\x18", b"\xff\x00\x00\x18")
    assert deadly != good
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(_outcome, [good, deadly, good, deadly, good, good]))
    assert outcomes == ["film", Reason.CRASHED, "film", Reason.CRASHED, "film", "film"]


def test_a_frame_of_another_size_is_corrupt(compress: Compress) -> None:
    packed = compress(plain(8), "--jpeg")
    frame = packed.index(b"\xff\xc3\x00\x0b")
    assert _outcome(packed[: frame + 6] + b"\x51" + packed[frame + 7 :]) is Reason.CORRUPT


def test_a_frame_without_its_end_is_truncated(compress: Compress) -> None:
    packed = compress(plain(8), "--jpeg")
    end = packed.rindex(b"\xff\xd9")
    assert _outcome(packed[:end] + b"\0\0" + packed[end + 2 :]) is Reason.TRUNCATED


def _outcome(data: bytes) -> str:
    try:
        return "film" if (read_grey(data)[0] == read_grey(plain(8))[0]).all() else "garbage"
    except UnreadableScanError as error:
        return error.reason


def test_two_threads_that_want_the_last_idle_child_both_get_one(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    class JustTaken(list[object]):
        """Another thread took the last one after this one had looked."""

        def __bool__(self) -> bool:
            return True

    idle = JustTaken()
    monkeypatch.setattr(lossless._children, "idle", idle)
    assert _outcome(compress(plain(8), "--jpeg")) == "film"
    (child,) = idle
    child.close()  # type: ignore[attr-defined]
