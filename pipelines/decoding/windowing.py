"""From the values a DICOM file stores to the grey levels a radiologist is shown.

The chain is that of DICOM PS3.4 N.2: modality LUT or rescale, then VOI LUT or window, then inversion of MONOCHROME1, so
that dense tissue is bright in every film. It is computed once for each value that can occur and applied as a table:
computing it for each of four million pixels takes several times as long.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError

Stored = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.float64]


def shown(stored: Stored, dataset: pydicom.Dataset) -> npt.NDArray[np.uint8]:
    """Stored values as grey levels uint8 of the same shape.

    Raises `UnreadableScanError`, and `FloatingPointError` where the header's numbers overflow.
    """
    low, high = int(stored.min()), int(stored.max())
    if high - low > 0xFFFF:
        raise UnreadableScanError(Reason.UNSUPPORTED)
    # Raised, since NumPy would otherwise warn and go on with a film that is all white.
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        levels = _presentation(np.arange(low, high + 1, dtype=np.float64), dataset)
    if not np.isfinite(levels).all():
        raise UnreadableScanError(Reason.CORRUPT)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        levels = 255.0 - levels
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    index = stored if low == 0 else stored.astype(np.int64) - low
    return table[index]


def _presentation(values: Values, dataset: pydicom.Dataset) -> Values:
    """Grey levels 0..255 of stored values: the window's ends are black and white; without one, the film's own ends."""
    if sequence := dataset.get("ModalityLUTSequence"):
        values, _ = _looked_up(values, sequence[0])
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        values = values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if sequence := dataset.get("VOILUTSequence"):
        values, bits = _looked_up(values, sequence[0])
        return values * (255.0 / ((1 << bits) - 1))
    center, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if center is not None and width is not None and width >= 1:
        return 255.0 * _window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    low, high = float(values.min()), float(values.max())
    return (values - low) * (255.0 / max(high - low, 1e-6))


def _window(values: Values, center: float, width: float, function: str) -> Values:
    """Share of white, 0 to 1, by DICOM PS3.3 C.11.2.1.2 (linear) and C.11.2.1.3 (sigmoid, linear exact)."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    # A window of width 1 is a step.
    return np.clip((values - (center - 0.5)) / max(width - 1.0, 1e-6) + 0.5, 0.0, 1.0)


def _looked_up(values: Values, item: pydicom.Dataset) -> tuple[Values, int]:
    """Values through a lookup table of DICOM PS3.3 C.11.1.1, and the bits of its entries."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2" if len(data) >= 2 * entries else "u1")
    table = np.asarray(data, dtype=np.float64)[:entries]
    place = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[place], min(max(bits, 8), 16)


def _first(dataset: pydicom.Dataset, name: str) -> float | None:
    """The first value of a tag that may hold several: the view the technician saw first. None where it is no number."""
    value = dataset.get(name)
    if value is None or isinstance(value, str):
        return None
    number = float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
    return number if math.isfinite(number) else None
