"""The decoders of compressed frames: one table, from transfer syntax to decoder.

imagecodecs (libjpeg-turbo, CharLS, OpenJPEG, OpenJPH) decodes them all, HTJ2K in a child (`htj2k.py`). Within the JPEG
family the frame's own marker decides, for files are seen that name another member than they hold. Codecs are not tried
in turn: the most lenient one would decide which films are readable.
"""

from collections.abc import Callable
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, uid
from pydicom.encaps import get_frame

from pipelines.contracts import Reason
from pipelines.decoding.elements import photometric, told, whole
from pipelines.decoding.frames import (
    HTJ2K,
    J2K,
    JPEG_LS,
    LOSSLESS,
    FrameHeader,
    frame_header,
    whole_frame,
)
from pipelines.decoding.htj2k import decode_htj2k
from pipelines.decoding.resolutions import decode_reduced
from pipelines.errors import UnreadableScanError

Samples = npt.NDArray[np.integer[Any]]
"""Stored values [height, width], or [height, width, 3] of a colour scan."""


def _jpeg_family(dataset: Dataset, smallest: int | None) -> Samples:
    frame = whole_frame(get_frame(dataset.PixelData, 0, number_of_frames=1))
    header = frame_header(frame)
    if (header.height, header.width) != (whole(dataset, "Rows"), whole(dataset, "Columns")):
        raise UnreadableScanError(Reason.CORRUPT, "the compressed image is not of the header's size")
    if header.components not in {1, 3}:
        raise UnreadableScanError(Reason.UNSUPPORTED, f"{header.components} components")
    values = None
    if smallest is not None and _has_resolutions(dataset, header):
        values = decode_reduced(frame, header, smallest, whole(dataset, "BitsStored"))
    if values is None:
        values = decode_frame(frame, header)
    if values.dtype.kind == "i":  # only JPEG 2000 can say that its values are signed, and is believed
        return values
    bits = min(header.bits, whole(dataset, "BitsStored") or header.bits)
    return signed(values, bits) if whole(dataset, "PixelRepresentation") == 1 else values


def _has_resolutions(dataset: Dataset, header: FrameHeader) -> bool:
    """Whether values between two values mean something: not for palettes, padding, or signs hidden from the codec."""
    grey = photometric(dataset) in {"MONOCHROME1", "MONOCHROME2"} and "PixelPaddingValue" not in dataset
    return grey and (header.is_signed or whole(dataset, "PixelRepresentation") != 1)


def _rle(dataset: Dataset, _: int | None) -> Samples:
    """PS3.5, annex G: the bytes of a word lie in segments of their own, and so do the samples of a pixel."""
    height, width, samples = shape(dataset)
    kind = np.dtype(f"<u{(whole(dataset, 'BitsAllocated') or 8) // 8}")
    size = height * width * samples * kind.itemsize
    data = imagecodecs.dicomrle_decode(get_frame(dataset.PixelData, 0, number_of_frames=1), kind, out=size)
    if len(data) < size:
        raise UnreadableScanError(Reason.TRUNCATED)
    words = stored_bits(np.frombuffer(data, kind), dataset)
    if samples == 1:
        return words.reshape(height, width)
    return np.moveaxis(words.reshape(samples, height, width), 0, -1)


def shape(dataset: Dataset) -> tuple[int, int, int]:
    """Height, width and samples a pixel, 1 or 3; where the last is not said, as the colours have it."""
    height, width = whole(dataset, "Rows") or 0, whole(dataset, "Columns") or 0
    colour = photometric(dataset) not in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    samples = whole(dataset, "SamplesPerPixel") or (3 if colour else 1)
    if samples not in {1, 3}:
        raise UnreadableScanError(Reason.UNSUPPORTED, told(samples, "samples a pixel"))
    return height, width, samples


def stored_bits(words: Samples, dataset: Dataset) -> Samples:
    """Words of BitsAllocated without what lies outside their stored bits (old overlays), with their sign."""
    words = words.view(f"u{words.dtype.itemsize}")
    allocated = 8 * words.dtype.itemsize
    stored = min(whole(dataset, "BitsStored") or allocated, allocated)
    high = whole(dataset, "HighBit")
    low = max(0, min(stored if high is None else high + 1, allocated) - stored)
    if low:
        words = words >> low
    # Looking for bits above is less work than masking them, and few films have any.
    if stored < allocated and words.size and int(words.max()) >> stored:
        words = words & words.dtype.type((1 << stored) - 1)
    return signed(words, stored) if whole(dataset, "PixelRepresentation") == 1 else words


def signed(words: Samples, bits: int) -> Samples:
    """Unsigned words as two's complements of `bits` bits."""
    shift = 8 * words.dtype.itemsize - bits
    values = words.view(f"i{words.dtype.itemsize}")
    return (values << shift) >> shift if shift > 0 else values


DECODERS: Final[dict[str, Callable[[Dataset, int | None], Samples]]] = {
    uid.RLELossless: _rle,
    uid.JPEGBaseline8Bit: _jpeg_family,
    uid.JPEGExtended12Bit: _jpeg_family,
    uid.JPEGLossless: _jpeg_family,
    uid.JPEGLosslessSV1: _jpeg_family,
    uid.JPEGLSLossless: _jpeg_family,
    uid.JPEGLSNearLossless: _jpeg_family,
    uid.JPEG2000Lossless: _jpeg_family,
    uid.JPEG2000: _jpeg_family,
    uid.HTJ2KLossless: _jpeg_family,
    uid.HTJ2KLosslessRPCL: _jpeg_family,
    uid.HTJ2K: _jpeg_family,
}
"""Transfer syntax -> decoder of the one frame. Uncompressed syntaxes are `stored.py`'s; all others are unsupported."""


def decode_frame(frame: bytes, header: FrameHeader) -> Samples:
    """A frame's values, bit for bit.

    Raises `ValueError`, `RuntimeError` or `UnreadableScanError` for bytes that do not decode.
    """
    if header.marker == HTJ2K:
        return decode_htj2k(frame)
    if header.marker == J2K:
        return imagecodecs.jpeg2k_decode(frame)
    if header.marker == JPEG_LS:
        return imagecodecs.jpegls_decode(frame)
    # Grey is the Y of a colour JPEG: the colours need not be decoded. Of a lossless frame libjpeg converts nothing.
    grey = header.components == 3 and header.marker != LOSSLESS
    return imagecodecs.jpeg8_decode(frame, outcolorspace="GRAYSCALE" if grey else None)
