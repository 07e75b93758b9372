"""From the values a DICOM file stores to the grey levels a radiologist is shown.

The chain is that of DICOM PS3.4 N.2: modality LUT or rescale, then VOI LUT or window, then inversion of MONOCHROME1, so
that dense tissue is bright in every film. It is computed once for each value that can occur and applied as a table:
computing it for each of four million pixels takes several times as long.

Where a header contradicts itself, the film is shown as common viewers show it: numbers that are none count as absent, a
rescale slope of 0 too (as dcmtk does), and lookup tables are scaled by what their entries fill.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from pipelines.contracts import Reason
from pipelines.decoding.elements import items, number, numbers, photometric, raw_bytes, text
from pipelines.errors import UnreadableScanError

Stored = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.float64]

_VALUES: Final = 1 << 16
"""How many values a film may use: 16 bits, which is what detectors deliver."""
_ROWS: Final = 64
"""Rows looked up at a time: few, so that their widened indices take little memory."""


@dataclass(frozen=True)
class _Padding:
    """Stored values that fill what is no image (PS3.3 C.7.5.1.1.2), from `low` to `high`."""

    low: int
    high: int

    def among(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return (values >= self.low) & (values <= self.high)


def shown(stored: Stored, dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Stored values of at most 16 bits as grey levels uint8 of the same shape.

    Raises `UnreadableScanError`, and `FloatingPointError` where the header's numbers overflow.
    """
    low, high = _range(stored)
    values = np.arange(low, high + 1)
    # Raised, since NumPy would otherwise warn and go on with a film that is all white.
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        levels = _presentation(values, stored, dataset)
    if not np.isfinite(levels).all():
        raise UnreadableScanError(Reason.CORRUPT, "window or lookup table without finite values")
    if photometric(dataset) == "MONOCHROME1":
        levels = 255.0 - levels
    # One entry for each of 65,536 values, at the place that the value's own 16 bits give: no index has to be computed.
    table = np.zeros(_VALUES, dtype=np.uint8)
    table[values.astype(np.uint16)] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return _looked_up(table, stored.view(np.uint16) if stored.dtype.itemsize == 2 else stored.astype(np.uint16))


def _looked_up(table: npt.NDArray[np.uint8], places: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """`table[places]` in half the time. NumPy widens indices to 64 bits: here of some rows, not of the whole film."""
    grey = np.empty(places.shape, dtype=np.uint8)
    for row in range(0, len(places), _ROWS):
        table.take(places[row : row + _ROWS], out=grey[row : row + _ROWS], mode="clip")
    return grey


def _range(stored: Stored) -> tuple[int, int]:
    """The values that can occur: all of 16 bits, without looking at four million pixels; of 32 bits those that do."""
    if stored.dtype.itemsize <= 2:
        limits = np.iinfo(stored.dtype)
        return int(limits.min), int(limits.max)
    low, high = int(stored.min()), int(stored.max())
    if high - low >= _VALUES:
        raise UnreadableScanError(Reason.UNSUPPORTED, "values of more than 16 bits")
    return low, high


def _presentation(stored: npt.NDArray[np.int64], film: Stored, dataset: Dataset) -> Values:
    """Grey levels 0..255 of stored values: the window's ends are black and white; without one, the film's own ends."""
    values = _modality(stored, dataset)
    for item in items(dataset, "VOILUTSequence"):
        if (table := _Lut.read(item, signed=float(values.min()) < 0)) is not None:
            return table.of(values) * (255.0 / table.white)
    window = _window(dataset)
    if window is not None:
        return 255.0 * window.share(values)
    low, high = _ends(stored, values, film, dataset)
    return (values - low) * (255.0 / max(high - low, 1e-6))


def _modality(stored: npt.NDArray[np.int64], dataset: Dataset) -> Values:
    """Modality LUT or rescale (PS3.3 C.11.1): what the VOI LUT or window is meant for."""
    for item in items(dataset, "ModalityLUTSequence"):
        table = _Lut.read(item, signed=number(dataset, "PixelRepresentation") == 1)
        if table is not None:
            return table.of(stored.astype(np.float64))
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    values = stored.astype(np.float64)
    return values * slope + intercept if slope and intercept is not None else values


def _ends(stored: npt.NDArray[np.int64], values: Values, film: Stored, dataset: Dataset) -> tuple[float, float]:
    """Lowest and highest value of the film, padding aside."""
    first = int(stored[0])
    among = values[int(film.min()) - first : int(film.max()) - first + 1]
    if padding := _padding(dataset):
        # Which values the film really holds: the ends of the range are the padding's as a rule.
        there = np.zeros(_VALUES, dtype=bool)
        there[film.view(np.uint16) if film.dtype.itemsize == 2 else film.astype(np.uint16)] = True
        kept = values[there[stored.astype(np.uint16)] & ~padding.among(stored)]
        among = kept if kept.size else among
    return float(among.min()), float(among.max())


def _padding(dataset: Dataset) -> _Padding | None:
    """Pixel Padding Value and its Range Limit (PS3.3 C.7.5.1.1.2), signed as the pixels are."""
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = number(dataset, keyword)
        if value is not None:
            whole = int(value)
            ends.append(whole - _VALUES if number(dataset, "PixelRepresentation") == 1 and whole >= 1 << 15 else whole)
        elif keyword == "PixelPaddingValue":
            return None
    return _Padding(min(ends), max(ends))


@dataclass(frozen=True)
class _Window:
    center: float
    width: float
    function: str

    def share(self, values: Values) -> Values:
        """Share of white, 0 to 1, by DICOM PS3.3 C.11.2.1.2 (linear) and C.11.2.1.3 (sigmoid, linear exact)."""
        if self.function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - self.center) / self.width, -700.0, 700.0)))
        # LINEAR asks for a width of 1 or more; films of values 0 to 1 have less, and viewers take the exact form.
        if self.function == "LINEAR_EXACT" or self.width < 1:
            return np.clip((values - self.center) / self.width + 0.5, 0.0, 1.0)
        # A window of width 1 is a step.
        return np.clip((values - (self.center - 0.5)) / max(self.width - 1.0, 1e-6) + 0.5, 0.0, 1.0)


def _window(dataset: Dataset) -> _Window | None:
    """The first usable one of the windows: the view the technician saw first. None where there is none."""
    centers, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        if center is not None and width is not None and width > 0:
            return _Window(center, width, (text(dataset, "VOILUTFunction") or "LINEAR").upper())
    return None


@dataclass(frozen=True)
class _Lut:
    """A lookup table of DICOM PS3.3 C.11.1.1 or C.11.2.1.1."""

    entries: Values
    first: int
    """The value that the first entry is for."""

    @classmethod
    def read(cls, item: Dataset, *, signed: bool) -> "_Lut | None":
        """The table of a sequence's item, from its bytes whatever their VR says; None if it holds none.

        `signed`: the values looked up may be negative, so the descriptor's first value is signed.
        """
        descriptor = raw_bytes(item, "LUTDescriptor")
        data, little = raw_bytes(item, "LUTData")
        if len(descriptor[0]) < 6 or not data:
            return None
        order = "<" if descriptor[1] else ">"
        entries, first, _ = (int(value) for value in np.frombuffer(descriptor[0][:6], order + "u2"))
        entries = entries or _VALUES
        if signed and first >= 1 << 15:
            first -= _VALUES
        if len(data) >= 2 * entries:
            table = np.frombuffer(data[: 2 * entries], "<u2" if little else ">u2")
        else:  # entries of 8 bits, two to a word
            table = np.frombuffer(data, "u1")
            if not little:
                table = table[: len(table) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
        table = table[:entries]
        return cls(table.astype(np.float64), first) if table.size else None

    @property
    def white(self) -> int:
        """The highest level the entries' bits can give: descriptors say 16 where the entries fill 12."""
        bits = int(self.entries.max()).bit_length()
        return (1 << min(max(bits, 8), 16)) - 1

    def of(self, values: Values) -> Values:
        place = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        looked_up: Values = self.entries[place]
        return looked_up
