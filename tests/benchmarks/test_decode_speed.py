"""Processor time for one film of a hospital's size, by transfer syntax, against a bare loop with the best decoder.

The bare loop knows its file: it finds the frame with pydicom, decodes it with imagecodecs, looks the window up in a
table and resizes. What rayscan adds is everything that a strange file needs; and, for HTJ2K, the way to a child and
back. What it leaves out, as models do unless they say otherwise, are the highest resolutions of JPEG 2000 and HTJ2K.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame

from models.spec import Preprocessing
from pipelines.decoding.decode import decode
from tests.pipelines.decoding.films import compressed, dataset, saved
from tests.pipelines.decoding.frames import EXTENDED, LOSSLESS

HEIGHT, WIDTH, SIDE = 2500, 2048, 224
ROUNDS, FILMS = 7, 5
ALLOWED = 1.1


def film() -> npt.NDArray[np.uint16]:
    """12-bit values with smooth structure and a detector's noise."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = (np.sin(across / 300) * np.cos(down / 400) + 1) * 1900
    return (smooth + np.random.default_rng(0).normal(0, 20, (HEIGHT, WIDTH))).clip(0, 4095).astype(np.uint16)


Frame = Callable[[pydicom.Dataset, bytes], npt.NDArray[np.integer]]


def cases(values: npt.NDArray[np.uint16]) -> dict[str, tuple[bytes, Frame]]:
    """Name -> a file, and the best way to its values."""

    def twelve() -> FileDataset:
        return dataset(values, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)

    def of(codec: Callable[[bytes], npt.NDArray[np.integer]]) -> Frame:
        return lambda header, _: codec(get_frame(header.PixelData, 0, number_of_frames=1))

    size = values.nbytes
    rle = twelve()
    rle.compress(uid.RLELossless)
    codecs = {
        "JPEG lossless": (LOSSLESS["jpeg_lossless_sv1"], imagecodecs.jpeg8_decode),
        "JPEG Extended": (EXTENDED, imagecodecs.jpeg8_decode),
        "JPEG-LS": (LOSSLESS["jpeg_ls"], imagecodecs.jpegls_decode),
        "JPEG 2000": (LOSSLESS["jpeg_2000"], imagecodecs.jpeg2k_decode),
        "HTJ2K": (LOSSLESS["htj2k"], imagecodecs.htj2k_decode),
    }
    return {
        "explicit little endian": (saved(twelve()), lambda header, _: np.frombuffer(header.PixelData, "<u2")),
        "RLE": (
            saved(rle),
            of(lambda frame: np.frombuffer(imagecodecs.dicomrle_decode(frame, np.dtype("<u2"), out=size), "<u2")),
        ),
        **{
            name: (compressed(twelve(), encode(values), syntax), of(decoder))
            for name, ((syntax, encode), decoder) in codecs.items()
        },
    }


def bare(data: bytes, frame: Frame) -> npt.NDArray[np.uint8]:
    header = pydicom.dcmread(BytesIO(data))
    values = frame(header, data).reshape(header.Rows, header.Columns)
    center, width = float(header.WindowCenter), float(header.WindowWidth)
    levels = np.clip((np.arange(65536) - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    grey = np.rint(levels).astype(np.uint8)[values]
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def cpu_seconds() -> float:
    """Of this process and its decoders' children."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@pytest.mark.bench
def test_decoding_costs_what_the_codec_costs() -> None:
    dear = {}
    for name, (data, frame) in cases(film()).items():
        exact, usual = Preprocessing(size=SIDE, decode="exact"), Preprocessing(size=SIDE)
        plain = bare(data, frame).astype(int)
        assert np.abs(decode(data, exact).pixels - plain).max() <= 1
        assert np.abs(decode(data, usual).pixels - plain).mean() <= 0.5
        works = {
            "usual": lambda: decode(data, usual),  # noqa: B023 (called at once)
            "exact": lambda: decode(data, exact),  # noqa: B023
            "bare": lambda: bare(data, frame),  # noqa: B023
        }
        spent: dict[str, list[float]] = {way: [] for way in works}
        for _ in range(ROUNDS):  # in turns, so that what the machine does else falls on all
            for way, work in works.items():
                started = cpu_seconds()
                for _ in range(FILMS):  # the kernel counts in hundredths of a second
                    work()
                spent[way].append((cpu_seconds() - started) / FILMS)
        cost = {way: statistics.median(seconds) for way, seconds in spent.items()}
        ratios = {way: cost[way] / cost["bare"] for way in ("usual", "exact")}
        print(
            f"{name:>22}: {1e3 * cost['usual']:6.1f} CPU-ms ({ratios['usual']:.2f} of a bare loop's), "
            f"every pixel {1e3 * cost['exact']:6.1f} ({ratios['exact']:.2f}), bare loop {1e3 * cost['bare']:6.1f}"
        )
        if max(ratios.values()) > ALLOWED:
            dear[name] = ratios
    assert dear == {}


@pytest.mark.bench
@pytest.mark.parametrize("name", sorted(cases(np.zeros((8, 8), np.uint16))))
def test_a_film_takes_at_most_four_times_its_pixels_of_memory(name: str, tmp_path: Path) -> None:
    """Of 16 megapixels, in a process of its own: what its peak rises by, the file's own bytes aside."""
    values = np.tile(film(), (2, 2))[:4096, :4096]
    data, _ = cases(values)[name]
    (tmp_path / "film").write_bytes(data)
    script = (
        "from models.spec import Preprocessing\n"
        "from pipelines.decoding.decode import decode\n"
        "def kilobytes(name):\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name))\n"
        f"small = decode(open({str(tmp_path / 'small')!r}, 'rb').read(), Preprocessing(size={SIDE}))\n"
        f"data = open({str(tmp_path / 'film')!r}, 'rb').read()\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak starts anew: a fork inherits its parent's
        "before = kilobytes('VmRSS')\n"
        f"decode(data, Preprocessing(size={SIDE}))\n"
        "print(kilobytes('VmHWM') - before)\n"
    )
    (tmp_path / "small").write_bytes(cases(values[:64, :64])[name][0])
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    share = int(told) * 1024 / values.nbytes
    print(f"{name:>22}: {share:.1f} times the pixels' bytes")
    assert share <= 4
