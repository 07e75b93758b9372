"""The DICOM backend: one frame of grey levels, and the header.

`dicom_file.py` reads the file; no other module sees tags that are not on its list. A compressed frame goes to one
decoder, not to all in turn: the most lenient one would decide which films are readable. GDCM gets only what Pillow
cannot read, in a child process (`lossless.py`).
"""

import re
import struct
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame

from models.gate.checks import ScanTags
from pipelines.contracts import Reason
from pipelines.decoding.dicom_file import MALFORMED, decode_frame, parse
from pipelines.decoding.lossless import decode_lossless
from pipelines.decoding.windowing import Stored, shown
from pipelines.errors import UnreadableScanError

MAX_PIXELS: Final = 100_000_000
"""Larger images are refused before they are decoded: no film has them, a decompression bomb does."""

_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_STARTS_OF_FRAME: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})
_DECODERS: Final[dict[str, str]] = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.RLELossless: "pydicom",
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "gdcm",
    uid.JPEGLSNearLossless: "gdcm",
}
"""Transfer syntax -> the decoder of pydicom that reads it; all others are unsupported."""
_CODE: Final = re.compile(r"[\w /.-]{1,32}", re.ASCII)
"""What a code string may look like. A name that ended up in such a tag has carets."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What rayscan reads of a scan besides its pixels. The allow-list: nothing else of a header is looked at."""

    format: str
    width: int
    height: int
    tags: ScanTags = field(default_factory=ScanTags)
    study_date: date | None = None
    patient_id: str | None = field(default=None, repr=False)
    """Raw, in memory only: it is written as an HMAC or not at all."""


def read_header(data: bytes) -> Header:
    """The header of a DICOM file. Raises `UnreadableScanError`."""
    return _header(parse(data, pixels=False))


def read_grey(data: bytes) -> tuple[npt.NDArray[np.uint8], Header]:
    """The film as uint8 [height, width], dense tissue bright, and its header. Raises `UnreadableScanError`."""
    dataset = parse(data, pixels=True)
    header = _header(dataset)
    try:
        _refuse_unusable(dataset)
        return shown(_stored(dataset, data), dataset), header
    except NotImplementedError:
        raise UnreadableScanError(Reason.UNSUPPORTED) from None
    except MemoryError:
        raise UnreadableScanError(Reason.TOO_LARGE) from None
    except MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None


def _header(dataset: pydicom.Dataset) -> Header:
    try:
        width, height = int(dataset.Columns), int(dataset.Rows)
        tags = ScanTags(
            modality=_code(dataset, "Modality"),
            body_part=_code(dataset, "BodyPartExamined"),
            view=_code(dataset, "ViewPosition"),
        )
        patient_id, study_date = _text(dataset, "PatientID"), _day(_text(dataset, "StudyDate"))
    except MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    if width * height == 0:
        raise UnreadableScanError(Reason.NO_PIXELS)
    if width * height > MAX_PIXELS:
        raise UnreadableScanError(Reason.TOO_LARGE)
    return Header(format="dicom", width=width, height=height, tags=tags, study_date=study_date, patient_id=patient_id)


def _text(dataset: pydicom.Dataset, name: str) -> str | None:
    value = dataset.get(name)
    words = [value] if isinstance(value, str) else list(value or ())
    return " ".join(str(word) for word in words).strip(" \0") or None


def _code(dataset: pydicom.Dataset, name: str) -> str | None:
    text = _text(dataset, name)
    return text if text and _CODE.fullmatch(text) else None


def _day(text: str | None) -> date | None:
    digits = (text or "").replace(".", "")
    if len(digits) != 8:  # strptime would read 2024229 as some day, too
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


def _refuse_unusable(dataset: pydicom.Dataset) -> None:
    if not dataset.get("PixelData"):
        raise UnreadableScanError(Reason.NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) != 1 or dataset.PhotometricInterpretation not in _GREY:
        raise UnreadableScanError(Reason.UNSUPPORTED)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _DECODERS or (syntax == uid.JPEGExtended12Bit and dataset.BitsStored > 8):
        raise UnreadableScanError(Reason.UNSUPPORTED)
    if not syntax.is_compressed and len(dataset.PixelData) < (
        int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
    ):
        raise UnreadableScanError(Reason.TRUNCATED)


def _stored(dataset: pydicom.Dataset, data: bytes) -> Stored:
    """The stored values [height, width] of the one frame."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in uid.JPEGTransferSyntaxes + uid.JPEGLSTransferSyntaxes + uid.JPEG2000TransferSyntaxes:
        _check_frame(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    pixels = decode_lossless(data) if _DECODERS[syntax] == "gdcm" else decode_frame(dataset, _DECODERS[syntax])
    if pixels.shape != (dataset.Rows, dataset.Columns) or pixels.dtype.kind not in "iu":
        raise UnreadableScanError(Reason.UNSUPPORTED)
    return pixels


def _check_frame(frame: bytes, dataset: pydicom.Dataset) -> None:
    """Refuse a compressed frame that is cut off, or is not what the file says it is."""
    if dataset.file_meta.TransferSyntaxUID in uid.JPEG2000TransferSyntaxes:
        # The SIZ segment (ITU T.800, A.5.1): far corner of the image, then its near corner.
        siz = frame.index(b"\xff\x4f\xff\x51")
        right, bottom, left, top = struct.unpack(">IIII", frame[siz + 8 : siz + 24])
        height, width = bottom - top, right - left
    else:
        # libjpeg fills up what is missing with grey and only says so on stderr: the end marker must be there.
        if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise UnreadableScanError(Reason.TRUNCATED)
        height, width, components = _jpeg_frame_header(frame)
        if components != 1:
            raise UnreadableScanError(Reason.CORRUPT)
    if (height, width) != (dataset.Rows, dataset.Columns):
        raise UnreadableScanError(Reason.CORRUPT)


def _jpeg_frame_header(frame: bytes) -> tuple[int, int, int]:
    """Height, width and number of components, from the start of frame (ITU T.81, B.2.2; T.87, C.2.2)."""
    place = 2
    while frame[place] == 0xFF:
        if frame[place + 1] in _STARTS_OF_FRAME:
            height, width, components = struct.unpack(">HHB", frame[place + 5 : place + 10])
            return height, width, components
        place += 1 if frame[place + 1] == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise UnreadableScanError(Reason.CORRUPT)
