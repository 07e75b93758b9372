"""From the bytes of a scan to a square of grey levels. The format is told by the content, never by the name.

The order is: header, the gate that judges it, pixels. What is no film, or a film of another part, is not decoded.
Whatever the bytes are, the outcome is a `Scan` or a `ScanError` with a reason from the closed list.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
from pipelines.errors import RejectedScanError, UnreadableScanError

Gate = Callable[[ScanTags], str | None]
"""Name of the reason to reject a scan by its header, or None: `models.gate.checks.check_tags`."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A decoded scan."""

    pixels: npt.NDArray[np.uint8]
    """Grey levels [size, size], dense tissue bright."""
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


def decode(data: bytes, preprocessing: Preprocessing, gate: Gate | None = None) -> Scan:
    """Decode, and fit to the model's square (`fit.py`). Raises `ScanError`.

    With a gate, scans whose header it refuses are not decoded.
    """
    scan = _opened(data, pixels=True)
    if gate and (refusal := gate(scan.header.tags)):
        raise RejectedScanError(Reason(refusal))
    if isinstance(scan, DicomScan):
        image = Image.fromarray(scan.grey())
    else:
        least = least_side(scan.header.width, scan.header.height, preprocessing)
        image = scan.grey(least if preprocessing.decode == "dct" else None)
    return Scan(pixels=fitted(image, preprocessing), header=scan.header)


def _opened(data: bytes, *, pixels: bool) -> DicomScan | ImageScan:
    if not data:
        raise UnreadableScanError(Reason.EMPTY_FILE)
    kind = sniff(data)
    if kind is None:
        raise UnreadableScanError(Reason.UNKNOWN_FORMAT)
    return DicomScan(data, pixels=pixels) if kind == "dicom" else ImageScan(data, kind)
