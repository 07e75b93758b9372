"""A DICOM file: its elements, as far as rayscan may look at them.

pydicom quotes values in its messages and warnings, and a value may be a patient's name; here they are silenced, or
replaced by a `Reason` and never chained.
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
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial

from pipelines.contracts import Reason
from pipelines.decoding.elements import text
from pipelines.errors import UnreadableScanError

MALFORMED: Final = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NotImplementedError,
                    OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
                    BytesLengthException, InvalidDicomError)  # fmt: skip
"""What the decoders raise on bytes that only look like a scan: almost every kind of error there is."""

MOST_INFLATED: Final = 1 << 30
"""Bytes that a deflated file may inflate to; more is a bomb."""

_TAGS: Final = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
                "Modality", "BodyPartExamined", "ViewPosition", "ViewCodeSequence", "PatientOrientation",
                "PresentationIntentType", "StudyDate", "Manufacturer", "ManufacturerModelName", "InstitutionName",
                "PatientID", "IssuerOfPatientID", "PatientAge", "PatientBirthDate", "PatientSex",
                "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
                "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                "PixelPaddingValue", "PixelPaddingRangeLimit",
                "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
                "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
                "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
                "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope",
                "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"]  # fmt: skip
_PIXEL_TAGS: Final = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_STORAGE_CLASSES: Final = "1.2.840.10008.5.1.4.1.1."
_PREAMBLE: Final = 132
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
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


def has_preamble(data: bytes) -> bool:
    """Whether `DICM` stands behind the preamble of 128 bytes, which may hold anything: headers of TIFF and JPEG do."""
    return data[128:_PREAMBLE] == b"DICM"


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
    """The elements rayscan may look at, with a transfer syntax in `file_meta`. Raises `UnreadableScanError`."""
    silence()
    tags = _TAGS + (_PIXEL_TAGS if pixels else [])
    try:
        dataset = _inflated(data, tags) or pydicom.dcmread(
            BytesIO(data), force=True, stop_before_pixels=not pixels, specific_tags=list(tags)
        )
        if not dataset.file_meta.get("TransferSyntaxUID"):
            implicit, _ = dataset.original_encoding
            syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = syntax
        # pydicom gives up all it has read when a compressed frame does not end
        ended = len(dataset) > 0 or not sop_class(dataset)
        if pixels and "PixelData" not in dataset:
            ended = ended and not _is_cut_short(data)
    except EOFError:
        raise UnreadableScanError(Reason.TRUNCATED) from None
    except MemoryError:
        raise UnreadableScanError(Reason.TOO_LARGE) from None
    except MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    if not ended:
        raise UnreadableScanError(Reason.TRUNCATED)
    return dataset


def _is_cut_short(data: bytes) -> bool:
    """Whether the file ends inside an element: pydicom takes that for the end of the file."""
    file, end = BytesIO(data), len(data)

    def runs_over(_: object, __: object, length: int) -> bool:
        nonlocal end
        end = len(data) if length == _UNDEFINED_LENGTH else file.tell() + length
        return end > len(data)

    read_partial(file, stop_when=runs_over, force=True)
    return end > len(data) or bool(data[end:].strip(b"\0"))  # what is left is no element, or the writer's padding


def sop_class(dataset: pydicom.Dataset) -> str | None:
    """The UID of what kind of object the file holds."""
    return text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")


def _inflated(data: bytes, tags: list[str]) -> pydicom.Dataset | None:
    """The elements of a deflated file, inflated within MOST_INFLATED, as pydicom would not; None for other files.

    The transfer syntax is (0002,0010) of the file's meta information (PS3.10 section 7.1), which is never deflated.
    """
    if not has_preamble(data):
        return None
    file = BytesIO(data)
    file.seek(_PREAMBLE)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group != 2)
    if text(meta, "TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return None
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflate.decompress(data[file.tell() :], MOST_INFLATED)
    if inflate.unconsumed_tail:
        raise UnreadableScanError(Reason.TOO_LARGE, f"inflates to more than {MOST_INFLATED >> 20} MiB")
    if not inflate.eof:
        raise EOFError
    elements = read_dataset(
        BytesIO(inflated), is_implicit_VR=False, is_little_endian=True, specific_tags=[*map(pydicom.tag.Tag, tags)]
    )
    dataset = pydicom.FileDataset("", elements, file_meta=FileMetaDataset(meta))
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset
