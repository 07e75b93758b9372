"""From the bytes of a scan to a square of grey levels. The format is told by the content, never by the name.

Whatever the bytes are, the outcome is a `Scan` or a `ScanError` with a reason from the closed list.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.gate.checks import ScanTags
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.dicom import DicomScan, Header
from pipelines.decoding.dicom_file import has_preamble, is_bare_dicom
from pipelines.decoding.fit import fitted, least_side
from pipelines.decoding.images import JPEG, PNG, ImageScan
from pipelines.errors import UnreadableScanError

WAVELET_MARGIN: Final = 2
"""Pixels of a lower resolution of JPEG 2000 for each of the film, along a side; the rest is resized as of any film."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A decoded scan."""

    pixels: npt.NDArray[np.uint8]
    """Grey levels [size, size], dense tissue bright."""
    judged: npt.NDArray[np.uint8]
    """The same as the gate knows films: squashed, not harmonised, which hides a negative and a missing half."""
    header: Header

    @property
    def tags(self) -> ScanTags:
        """What the header says the scan shows."""
        return self.header.tags


def sniff(data: bytes) -> str | None:
    """`jpeg`, `png` or `dicom` by the content; None for anything else."""
    if has_preamble(data):
        return "dicom"
    if data.startswith(JPEG):
        return "jpeg"
    if data.startswith(PNG):
        return "png"
    return "dicom" if is_bare_dicom(data) else None


def read_header(data: bytes) -> Header:
    """Size and tags, without decoding the pixels. Raises `ScanError`."""
    return _opened(data, pixels=False).header


def decode(data: bytes, preprocessing: Preprocessing) -> Scan:
    """Decode and fit into the model's square. Raises `ScanError`."""
    return open_scan(data).film(preprocessing)


def open_scan(data: bytes) -> "OpenScan":
    """The scan with its header read and its pixels still coded. Raises `ScanError`."""
    return OpenScan(_opened(data, pixels=True))


class OpenScan:
    """A scan whose header can be judged before its pixels are decoded."""

    def __init__(self, scan: DicomScan | ImageScan) -> None:
        self.header = scan.header
        self._scan = scan

    def film(self, preprocessing: Preprocessing) -> Scan:
        """Decode and fit into the model's square. Raises `UnreadableScanError`."""
        side = least_side(self.header.width, self.header.height, preprocessing)
        if isinstance(self._scan, DicomScan):
            smallest = WAVELET_MARGIN * side if preprocessing.decode == "reduced" else None
            image = Image.fromarray(self._scan.grey(smallest))
            full = (self.header.width, self.header.height)
        else:
            image = self._scan.grey(None if preprocessing.decode == "exact" else side)
            full = None
        pixels = judged = fitted(image, preprocessing, full)
        if preprocessing.fit != "squash" or preprocessing.harmonise is not None:
            judged = fitted(image, replace(preprocessing, fit="squash", harmonise=None), full)
        return Scan(pixels=pixels, judged=judged, header=self.header)


def _opened(data: bytes, *, pixels: bool) -> DicomScan | ImageScan:
    if not data:
        raise UnreadableScanError(Reason.EMPTY_FILE)
    kind = sniff(data)
    if kind is None:
        raise UnreadableScanError(Reason.UNKNOWN_FORMAT)
    return DicomScan(data, pixels=pixels) if kind == "dicom" else ImageScan(data, kind)
