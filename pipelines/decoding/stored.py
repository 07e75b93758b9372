"""The stored values of a DICOM file's one frame: grey as they are, colours as their luminance."""

from typing import Final

import numpy as np
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from pipelines.contracts import Reason
from pipelines.decoding.codecs import DECODERS, Samples, shape, stored_bits
from pipelines.decoding.elements import photometric, told, whole
from pipelines.errors import UnreadableScanError

_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_LUMINANCE: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Of red, green and blue (ITU-R BT.601, section 2.5.1), as JPEG and DICOM (PS3.3 C.7.6.3.1.2) have it."""


def read_stored(dataset: Dataset, smallest: int | None = None) -> Samples:
    """Stored values [height, width] of grey scans, luminance uint8 of colour scans.

    Raises `UnreadableScanError`, and any of `MALFORMED` for bytes that do not decode. `smallest`: see `decode_frame`.
    """
    _refuse_unusable(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    values = DECODERS[syntax](dataset, smallest) if syntax.is_compressed else _native(dataset)
    return _grey(values, dataset)


def is_grey(dataset: Dataset) -> bool:
    """Whether a modality LUT, a window and an inversion apply: those of colour scans are on the screen already."""
    return photometric(dataset) in _GREY


def _refuse_unusable(dataset: Dataset) -> None:
    if not dataset.get("PixelData"):
        raise UnreadableScanError(Reason.NO_PIXELS)
    frames = whole(dataset, "NumberOfFrames") or 1
    if frames != 1:
        raise UnreadableScanError(Reason.UNSUPPORTED, told(frames, "frames"))
    if photometric(dataset) not in _GREY + _COLOUR:
        raise UnreadableScanError(Reason.UNSUPPORTED, "photometric interpretation")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax or (syntax.is_compressed and syntax not in DECODERS):
        raise UnreadableScanError(Reason.UNSUPPORTED, syntax.name if syntax.name != syntax else "transfer syntax")


def _native(dataset: Dataset) -> Samples:
    """Uncompressed values (PS3.5 section 8.1.1): words of BitsAllocated, of which BitsStored up to HighBit count."""
    height, width, samples = shape(dataset)
    halved = photometric(dataset) == "YBR_FULL_422"
    data = dataset.PixelData
    allocated = whole(dataset, "BitsAllocated") or 8 * max(1, len(data) // (height * width * samples))
    if allocated not in {8, 16, 32}:
        raise UnreadableScanError(Reason.UNSUPPORTED, told(allocated, "bits allocated"))
    count = height * width * (2 if halved else samples)
    if len(data) < count * allocated // 8:
        raise UnreadableScanError(Reason.TRUNCATED)
    order = "<" if dataset.original_encoding[1] in {True, None} else ">"
    if order == ">" and allocated == 8 and dataset["PixelData"].VR == "OW":
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    words = np.frombuffer(data, f"{order}u{allocated // 8}", count=count)
    if order == ">":
        words = words.astype(words.dtype.newbyteorder("="))
    if halved:  # Y Y Cb Cr for each pair of pixels
        return words.reshape(height, width // 2, 4)[..., :2].reshape(height, width)
    values = stored_bits(words, dataset)
    if samples == 1:
        return values.reshape(height, width)
    if whole(dataset, "PlanarConfiguration") == 1:
        return np.moveaxis(values.reshape(samples, height, width), 0, -1)
    return values.reshape(height, width, samples)


def _grey(values: Samples, dataset: Dataset) -> Samples:
    """Grey values as they are; of colours the luminance, uint8."""
    interpretation = photometric(dataset)
    if interpretation == "PALETTE COLOR" and values.ndim == 2:
        values = apply_color_lut(values, dataset)
        values = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
    if values.ndim == 2:
        return _eight_bits(values, dataset) if not is_grey(dataset) else values
    if interpretation == "YBR_FULL" and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        return _eight_bits(values[..., 0], dataset)
    luminance = np.rint(values[..., :3].astype(np.float32) @ _LUMINANCE)
    return _eight_bits(luminance.astype(np.uint16), dataset)


def _eight_bits(values: Samples, dataset: Dataset) -> Samples:
    bits = whole(dataset, "BitsStored") or 8
    return (values >> max(0, bits - 8)).astype(np.uint8)
