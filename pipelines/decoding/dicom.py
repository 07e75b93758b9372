"""The DICOM backend: one frame of grey levels, and the few tags rayscan may look at.

pydicom is asked to parse the tags of `_TAGS` and no others, so a patient's name is never even in memory. It quotes
values in its warnings, logs and exceptions; those are silenced, or replaced by a `Reason` and never chained.

A compressed frame goes to one decoder, not to all in turn: the most lenient one would decide which films are readable.
GDCM gets only what Pillow cannot read, in a child process (`lossless.py`).
"""

import logging
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from datetime import date, datetime
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.config import IGNORE, settings
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder

from models.gate.checks import ScanTags
from pipelines.contracts import Reason
from pipelines.decoding.lossless import decode_lossless
from pipelines.decoding.windowing import Stored, shown
from pipelines.errors import UnreadableScanError

MAX_PIXELS: Final = 100_000_000
"""Larger images are refused before they are decoded: no film has them, a decompression bomb does."""

MALFORMED: Final = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError,
                    SyntaxError, TypeError, ValueError, struct.error, zlib.error, BytesLengthException,
                    InvalidDicomError)  # fmt: skip
"""What the decoders raise on bytes that only look like a scan: almost every kind of error there is."""

_TAGS: Final = ["SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "StudyDate", "PatientID",
                "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
                "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope",
                "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"]  # fmt: skip
_PIXEL_TAGS: Final = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_STORAGE_CLASSES: Final = "1.2.840.10008.5.1.4.1.1."
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
_DEFLATED: Final = uid.DeflatedExplicitVRLittleEndian.encode()
"""Refused before pydicom inflates it, which it does without bounds; films are compressed by frame, not by file."""
_META_BYTES: Final = 1 << 16
"""Generous: the group that names the transfer syntax comes first and takes a few hundred bytes."""
_CODE: Final = re.compile(r"[\w /.-]{1,32}", re.ASCII)
"""What a code string may look like. A name that ended up in such a tag has carets."""
_QUIET: Final = re.compile(r"(pydicom|PIL)(\.|$)")


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


def is_bare_dicom(data: bytes) -> bool:
    """Whether this is DICOM without the 128-byte preamble, as old archives hold: told by a plausible SOP class."""
    # The first element is of group 2 or 8, little endian; nothing else is worth a parse.
    if data[:2] not in {b"\x02\x00", b"\x08\x00"}:
        return False
    silence()
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
        return str(dataset.get("SOPClassUID", "")).startswith(_STORAGE_CLASSES)
    except MALFORMED:
        return False


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


def silence() -> None:
    """Keep pydicom and Pillow from telling anyone what stands in a file. Cheap, and safe to repeat from any thread."""
    settings.reading_validation_mode = IGNORE
    logging.getLogger("pydicom").disabled = True
    pillow = logging.getLogger("PIL")
    if pillow.level != logging.CRITICAL:  # at DEBUG its modules log what EXIF says; setting it empties logging's caches
        pillow.setLevel(logging.CRITICAL)
    # First in the list, whoever has put a filter there since; warnings.catch_warnings would not be safe with threads.
    if not warnings.filters or warnings.filters[0][3] != _QUIET:
        warnings.filterwarnings("ignore", module=_QUIET.pattern)


def parse(data: bytes, *, pixels: bool) -> pydicom.Dataset:
    """The tags rayscan may look at. Raises `UnreadableScanError`."""
    silence()
    if _DEFLATED in data[:_META_BYTES]:
        raise UnreadableScanError(Reason.UNSUPPORTED)
    tags = _TAGS + (_PIXEL_TAGS if pixels else [])
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=not pixels, specific_tags=list(tags))
        meta = dataset.file_meta
        kind = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
        if "TransferSyntaxUID" not in meta:
            implicit, _ = dataset.original_encoding
            meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    except EOFError:
        raise UnreadableScanError(Reason.TRUNCATED) from None
    except MemoryError:
        raise UnreadableScanError(Reason.TOO_LARGE) from None
    except MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    if kind and len(dataset) == 0:  # pydicom gives up all it has read when a compressed frame does not end
        raise UnreadableScanError(Reason.TRUNCATED)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableScanError(Reason.NO_PIXELS if kind else Reason.CORRUPT)
    return dataset


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


def decode_frame(dataset: pydicom.Dataset, decoder: str) -> Stored:
    """The stored values [height, width] by one of pydicom's decoders. Raises any of `MALFORMED`."""
    pixels, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, raw=True, decoding_plugin=decoder)
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
