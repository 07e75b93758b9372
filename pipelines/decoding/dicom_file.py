"""A DICOM file as pydicom reads it: the few tags rayscan may look at, and the stored values of a frame.

pydicom is asked to parse the tags of `_TAGS` and no others, so a patient's name is never even in memory. It quotes
values in its warnings, logs and exceptions; those are silenced, or replaced by a `Reason` and never chained.
"""

import logging
import re
import struct
import warnings
import zlib
from io import BytesIO
from typing import Final

import pydicom
from pydicom import uid
from pydicom.config import IGNORE, settings
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder

from pipelines.contracts import Reason
from pipelines.decoding.windowing import Stored
from pipelines.errors import UnreadableScanError

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
_DEFLATED: Final = uid.DeflatedExplicitVRLittleEndian.encode()
"""Refused before pydicom inflates it, which it does without bounds; films are compressed by frame, not by file."""
_META_BYTES: Final = 1 << 16
"""Generous: the group that names the transfer syntax comes first and takes a few hundred bytes."""
_QUIET: Final = re.compile(r"(pydicom|PIL)(\.|$)")


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


def decode_frame(dataset: pydicom.Dataset, decoder: str) -> Stored:
    """The stored values [height, width] by one of pydicom's decoders. Raises any of `MALFORMED`."""
    pixels, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, raw=True, decoding_plugin=decoder)
    return pixels
