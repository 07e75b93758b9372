"""The DICOM backend: the header, and one frame of grey levels.

`dicom_file.py` reads the file; no other module sees elements that are not on its list.
"""

from dataclasses import dataclass, field
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom

from models.gate.checks import ScanTags
from pipelines.contracts import Reason
from pipelines.decoding.columns import HeaderColumns, Identity, read_columns, read_identity
from pipelines.decoding.dicom_file import MALFORMED, parse, sop_class
from pipelines.decoding.elements import code, items, text, whole
from pipelines.decoding.objects import refuse_other_objects
from pipelines.decoding.stored import is_grey, read_stored
from pipelines.decoding.windowing import shown
from pipelines.errors import UnreadableScanError

MAX_PIXELS: Final = 100_000_000
"""Larger images are refused before they are decoded: no film has them, a decompression bomb does."""
_LONGEST_SIDE: Final = 0xFFFF
"""Rows and Columns are of 16 bits (PS3.3 C.7.6.3); what is longer was written as something else."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What rayscan reads of a scan besides its pixels. The allow-list: nothing else of a header is looked at."""

    format: str
    width: int
    height: int
    tags: ScanTags = field(default_factory=ScanTags)
    columns: HeaderColumns = field(default_factory=HeaderColumns)
    institution: str | None = field(default=None, repr=False)
    """InstitutionName, for those who take the site from it."""
    patient_id: str | None = field(default=None, repr=False)
    """Raw, in memory only: it is written as an HMAC or not at all."""
    issuer: str | None = field(default=None, repr=False)
    """IssuerOfPatientID: whose number that is."""
    identity: Identity | None = field(default=None, repr=False)

    @property
    def study_date(self) -> date | None:
        """The day of the study."""
        return self.columns.study_date


class DicomScan:
    """A DICOM file whose header has been read and found to be of a film."""

    def __init__(self, data: bytes, *, pixels: bool = True) -> None:
        """Raises `RejectedScanError` for another kind of object, `UnreadableScanError` for a file that is broken."""
        self._dataset = parse(data, pixels=pixels)
        self.header = _header(self._dataset)

    def grey(self, smallest: int | None = None) -> npt.NDArray[np.uint8]:
        """The film as uint8 [height, width], dense tissue bright. Raises `UnreadableScanError`.

        `smallest`: pixels a side that suffice where the codec can decode fewer than all.
        """
        try:
            stored = read_stored(self._dataset, smallest)
            return shown(stored, self._dataset) if is_grey(self._dataset) else stored.astype(np.uint8, copy=False)
        except MemoryError:
            raise UnreadableScanError(Reason.TOO_LARGE) from None
        except MALFORMED:
            raise UnreadableScanError(Reason.CORRUPT) from None


def read_header(data: bytes) -> Header:
    """The header of a DICOM file; raises as `DicomScan`."""
    return DicomScan(data, pixels=False).header


def read_grey(data: bytes) -> tuple[npt.NDArray[np.uint8], Header]:
    """The film as uint8 [height, width], dense tissue bright, and its header; raises as `DicomScan`."""
    scan = DicomScan(data)
    return scan.grey(), scan.header


def _header(dataset: pydicom.Dataset) -> Header:
    try:
        kind = sop_class(dataset)
        refuse_other_objects(kind, text(dataset, "PresentationIntentType"))
        width, height = whole(dataset, "Columns"), whole(dataset, "Rows")
        tags = ScanTags(
            modality=code(dataset, "Modality"),
            body_part=code(dataset, "BodyPartExamined"),
            view=code(dataset, "ViewPosition"),
            view_code=next((code(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")), None),
            orientation=text(dataset, "PatientOrientation"),
        )
        texts = {
            "institution": code(dataset, "InstitutionName"),
            "patient_id": text(dataset, "PatientID"),
            "issuer": text(dataset, "IssuerOfPatientID"),
        }
        columns, identity = read_columns(dataset), read_identity(dataset)
    except MALFORMED:
        raise UnreadableScanError(Reason.CORRUPT) from None
    if width is None or height is None:
        raise UnreadableScanError(Reason.NO_PIXELS if kind else Reason.CORRUPT)
    if width * height <= 0:
        raise UnreadableScanError(Reason.NO_PIXELS)
    if max(width, height) > _LONGEST_SIDE:
        raise UnreadableScanError(Reason.TOO_LARGE)  # and no more: the number may be a date
    if width * height > MAX_PIXELS:
        raise UnreadableScanError(Reason.TOO_LARGE, f"{width} x {height} pixels")
    return Header(format="dicom", width=width, height=height, tags=tags, columns=columns, identity=identity, **texts)
