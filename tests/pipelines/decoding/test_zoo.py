"""The zoo: files as broken archives hold them, each with the reason it must have. None is ever a film."""

import gzip
import struct
import zlib
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset

from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.decode import decode
from pipelines.errors import ScanError
from tests.pipelines.decoding import frames
from tests.pipelines.decoding.films import compressed, dataset, dicom, encode, ramp, saved

FILM = ramp()
TWELVE = FILM.astype(np.uint16) * 16
JPEG, PNG, DICOM = encode(FILM, "jpeg", quality=90), encode(FILM), dicom(FILM)
PROGRESSIVE = encode(FILM, "jpeg", quality=90, progressive=True)


def twelve(**tags: Any) -> FileDataset:
    return dataset(TWELVE, BitsStored=12, HighBit=11, **tags)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose start of frame claims this size."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def png_of(width: int, height: int, data: bytes = zlib.compress(b"")) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def of_class(sop_class: str, **tags: Any) -> bytes:
    file = dataset(FILM, **tags)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = sop_class
    return saved(file)


def framed(frame: bytes, syntax: uid.UID, **tags: Any) -> bytes:
    return compressed(twelve(**tags), frame, syntax)


LOSSLESS, JPEG_LS, J2K, HTJ2K = (
    frames.LOSSLESS[name][1](TWELVE) for name in ("jpeg_lossless", "jpeg_ls", "jpeg_2000", "htj2k")
)

ZOO: dict[str, tuple[bytes, Reason]] = {
    "nothing": (b"", Reason.EMPTY_FILE),
    "zeros": (bytes(4096), Reason.UNKNOWN_FORMAT),
    "text": (b"moved to the new archive\n" * 9, Reason.UNKNOWN_FORMAT),
    "html of a proxy": (b"<!DOCTYPE html><html>502 Bad Gateway</html>", Reason.UNKNOWN_FORMAT),
    "json": (b'{"error": "expired"}', Reason.UNKNOWN_FORMAT),
    "gif": (encode(FILM, "gif"), Reason.UNKNOWN_FORMAT),
    "bmp": (encode(FILM, "bmp"), Reason.UNKNOWN_FORMAT),
    "tiff": (encode(FILM, "tiff"), Reason.UNKNOWN_FORMAT),
    "webp": (encode(FILM, "webp"), Reason.UNKNOWN_FORMAT),
    "jpeg 2000 file": (encode(FILM, "jpeg2000"), Reason.UNKNOWN_FORMAT),
    "gzip": (gzip.compress(DICOM), Reason.UNKNOWN_FORMAT),
    "first bytes lost": (DICOM[140:], Reason.UNKNOWN_FORMAT),
    "magic only, jpeg": (JPEG[:3], Reason.TRUNCATED),
    "magic only, png": (PNG[:8], Reason.TRUNCATED),
    "magic only, dicom": (DICOM[:132], Reason.CORRUPT),
    "half a jpeg": (JPEG[: len(JPEG) // 2], Reason.TRUNCATED),
    "half a progressive jpeg": (PROGRESSIVE[: len(PROGRESSIVE) // 2], Reason.TRUNCATED),
    "half a png": (PNG[: len(PNG) // 2], Reason.TRUNCATED),
    "half a dicom": (DICOM[: len(DICOM) // 2], Reason.TRUNCATED),
    "dicom cut in its header": (DICOM[:300], Reason.TRUNCATED),
    "half a 12-bit jpeg": (frames.EXTENDED[1](TWELVE)[:900], Reason.TRUNCATED),
    "jpeg with a table of nothing": (JPEG.replace(b"\xff\xc4\0", b"\xff\xc4\0\x03\0", 1), Reason.CORRUPT),
    "jpeg of no height": (jpeg_of(96, 0), Reason.NO_PIXELS),
    "jpeg of four gigapixels": (jpeg_of(65_000, 65_000), Reason.TOO_LARGE),
    "png of no width": (png_of(0, 80), Reason.NO_PIXELS),
    "png of 60,000 squared": (png_of(60_000, 60_000), Reason.TOO_LARGE),
    "png with a broken stream": (png_of(96, 80, b"\xff" * 90), Reason.CORRUPT),
    "png with a wrong checksum": (PNG[:29] + b"\0\0\0\0" + PNG[33:], Reason.CORRUPT),
    "dicom with a VR that is none": (
        dicom(FILM, SOPClassUID=None).replace(b"\x02\0\x02\0UI", b"\x02\0\x02\0UH", 1),
        Reason.CORRUPT,
    ),
    "dicom of no rows": (dicom(FILM, Rows=0), Reason.NO_PIXELS),
    "dicom without rows": (dicom(FILM, Rows=None), Reason.NO_PIXELS),
    "dicom without pixels": (dicom(FILM, PixelData=None), Reason.NO_PIXELS),
    "dicom of too few pixels": (dicom(FILM, PixelData=FILM.tobytes()[:-200]), Reason.TRUNCATED),
    "dicom of 60,000 squared": (dicom(FILM, Rows=60_000, Columns=60_000), Reason.TOO_LARGE),
    "dicom of two frames": (dicom(np.stack([FILM, FILM]), Rows=80, Columns=96, NumberOfFrames=2), Reason.UNSUPPORTED),
    "dicom of one bit": (dicom(FILM, BitsAllocated=1, BitsStored=1, HighBit=0), Reason.UNSUPPORTED),
    "dicom of four samples": (dicom(np.stack([FILM] * 4, -1), SamplesPerPixel=4), Reason.UNSUPPORTED),
    "dicom of unheard-of colours": (dicom(FILM, PhotometricInterpretation="CIELAB"), Reason.UNSUPPORTED),
    "dicom video": (compressed(dataset(FILM), b"\0" * 64, uid.MPEG2MPML), Reason.UNSUPPORTED),
    "dicom of an infinite slope": (dicom(TWELVE, RescaleSlope="1e308", RescaleIntercept=0), Reason.CORRUPT),
    "half a lossless frame": (framed(LOSSLESS[:-500], uid.JPEGLosslessSV1), Reason.TRUNCATED),
    "half a jpeg-ls frame": (framed(JPEG_LS[:-500], uid.JPEGLSLossless), Reason.TRUNCATED),
    "half a jpeg 2000 frame": (framed(J2K[:-500], uid.JPEG2000Lossless), Reason.TRUNCATED),
    "half an htj2k frame": (framed(HTJ2K[:-500], uid.HTJ2KLossless), Reason.TRUNCATED),
    "frame of another size": (framed(frames.LOSSLESS["jpeg_ls"][1](TWELVE[:-1]), uid.JPEGLSLossless), Reason.CORRUPT),
    "frame of zeros": (framed(bytes(400), uid.JPEGBaseline8Bit), Reason.TRUNCATED),
    "frame that is only its ends": (framed(b"\xff\xd8\xff\xd9", uid.JPEGBaseline8Bit), Reason.CORRUPT),
    "rle frame of zeros": (framed(bytes(200), uid.RLELossless), Reason.CORRUPT),
    "report": (of_class("1.2.840.10008.5.1.4.1.1.88.11"), Reason.NOT_IMAGE),
    "presentation state": (of_class("1.2.840.10008.5.1.4.1.1.11.1"), Reason.NOT_IMAGE),
    "pdf in dicom": (of_class("1.2.840.10008.5.1.4.1.1.104.1"), Reason.NOT_IMAGE),
    "ultrasound": (of_class("1.2.840.10008.5.1.4.1.1.6.1"), Reason.NOT_XRAY),
    "ct": (of_class("1.2.840.10008.5.1.4.1.1.2"), Reason.NOT_XRAY),
    "raw detector data": (dicom(FILM, PresentationIntentType="FOR PROCESSING"), Reason.FOR_PROCESSING),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_each_has_its_reason(name: str) -> None:
    data, reason = ZOO[name]
    with pytest.raises(ScanError) as caught:
        decode(data, Preprocessing(size=64))
    assert caught.value.reason is reason


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 40


def test_a_dicom_that_ends_inside_any_element_is_truncated() -> None:
    """One that ends between two of them holds no pixels: nothing tells that more was to come."""
    elements = pydicom.dcmread(BytesIO(DICOM))
    first, pixels = (elements.get_item(name).value_tell for name in ("SOPClassUID", "PixelData"))
    seen: Counter[Reason] = Counter()
    for end in range(first, pixels - 12):  # an element's value lies 8 or 12 bytes behind its start
        with pytest.raises(ScanError) as caught:
            decode(DICOM[:end], Preprocessing(size=64))
        seen[caught.value.reason] += 1
    assert set(seen) == {Reason.TRUNCATED, Reason.NO_PIXELS}
    assert seen[Reason.NO_PIXELS] < len(elements)
