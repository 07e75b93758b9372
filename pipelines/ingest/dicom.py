"""The DICOM backend: one frame of grey levels, and the few tags rayscan may look at.

Values of a header never leave this module except through the allow-list of `Header`. pydicom quotes values in its
warnings, logs and exceptions, so those are silenced or replaced by a `Reason`, never chained.

Grey levels follow DICOM PS3.4 N.2: modality LUT or rescale, then VOI LUT or window, then inversion of MONOCHROME1,
so that dense tissue is bright in every film.
"""

import logging
import warnings
from dataclasses import dataclass, field
from datetime import date, datetime
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.config import IGNORE, settings
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from models.gate import ScanTags
from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: no film has them, a decompression bomb does."""

_GREY = ("MONOCHROME1", "MONOCHROME2")


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
    return _header(_parse(data, pixels=False))


def read_grey(data: bytes) -> tuple[npt.NDArray[np.uint8], Header]:
    """The film as uint8 [height, width], dense tissue bright, and its header. Raises `UnreadableScanError`."""
    dataset = _parse(data, pixels=True)
    header = _header(dataset)
    return _grey(dataset), header


def _silence() -> None:
    """Keep pydicom from telling anyone what stands in a file. Cheap, and safe to repeat from any thread."""
    settings.reading_validation_mode = IGNORE
    logging.getLogger("pydicom").disabled = True
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def _parse(data: bytes, *, pixels: bool) -> pydicom.Dataset:
    _silence()
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=not pixels)
        known = "SOPClassUID" in dataset and dataset.get("Rows") is not None
    except EOFError:
        raise UnreadableScanError(Reason.TRUNCATED) from None
    except (InvalidDicomError, *_MALFORMED):
        raise UnreadableScanError(Reason.CORRUPT) from None
    if not known:
        raise UnreadableScanError(Reason.NO_PIXELS if "SOPClassUID" in dataset else Reason.CORRUPT)
    return dataset


_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, OSError, MemoryError,
              NotImplementedError, RuntimeError, RecursionError)  # fmt: skip
"""What pydicom raises on bytes that only look like DICOM."""


def _header(dataset: pydicom.Dataset) -> Header:
    try:
        width, height = int(dataset.Columns), int(dataset.Rows)
        tags = ScanTags(
            modality=_text(dataset, "Modality"),
            body_part=_text(dataset, "BodyPartExamined"),
            view=_text(dataset, "ViewPosition"),
        )
        patient_id, study_date = _text(dataset, "PatientID"), _day(_text(dataset, "StudyDate"))
    except _MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    return Header(format="dicom", width=width, height=height, tags=tags, study_date=study_date, patient_id=patient_id)


def _text(dataset: pydicom.Dataset, name: str) -> str | None:
    return str(dataset.get(name) or "").strip() or None


def _day(text: str | None) -> date | None:
    try:
        return datetime.strptime((text or "").replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _grey(dataset: pydicom.Dataset) -> npt.NDArray[np.uint8]:
    _refuse_unusable(dataset)
    try:
        stored = dataset.pixel_array
    except NotImplementedError:
        raise UnreadableScanError(Reason.UNSUPPORTED) from None
    except (EOFError, *_MALFORMED):
        raise UnreadableScanError(_pixel_fault(dataset)) from None
    if stored.ndim != 2 or stored.size == 0:
        raise UnreadableScanError(Reason.UNSUPPORTED)
    try:
        values = np.asarray(apply_voi_lut(apply_modality_lut(stored, dataset), dataset, prefer_lut=True), np.float64)
    except _MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    return _to_bytes(values, inverted=dataset.PhotometricInterpretation == "MONOCHROME1")


def _refuse_unusable(dataset: pydicom.Dataset) -> None:
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        area = int(dataset.Rows) * int(dataset.Columns)
        grey = dataset.get("PhotometricInterpretation") in _GREY
        empty = not dataset.get("PixelData")
    except _MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    if empty or area == 0:
        raise UnreadableScanError(Reason.NO_PIXELS)
    if area > MAX_PIXELS:
        raise UnreadableScanError(Reason.TOO_LARGE)
    if frames != 1 or not grey:
        raise UnreadableScanError(Reason.UNSUPPORTED)


def _pixel_fault(dataset: pydicom.Dataset) -> Reason:
    """Uncompressed pixels that do not decode are too short; of compressed ones nobody can tell more than corrupt."""
    meta: Any = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    return Reason.CORRUPT if syntax is not None and syntax.is_compressed else Reason.TRUNCATED


def _to_bytes(values: npt.NDArray[np.float64], *, inverted: bool) -> npt.NDArray[np.uint8]:
    """Grey levels stretched to 0..255: the window was applied already, so its ends are the extremes here."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise UnreadableScanError(Reason.CORRUPT)
    scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.round(255.0 - scaled if inverted else scaled).astype(np.uint8)
