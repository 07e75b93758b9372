"""Grey films of JPEG 2000 and HTJ2K at a lower resolution, which the wavelet holds: a tenth of the work of the highest.

A lower resolution is the wavelet's low-pass of the film. It overshoots at edges, by more than the stored bits hold:
values are cut to their range.
"""

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from pipelines.decoding.frames import HTJ2K, J2K, FrameHeader
from pipelines.decoding.htj2k import decode_htj2k

Values = npt.NDArray[np.integer[Any]]


def decode_reduced(frame: bytes, header: FrameHeader, smallest: int, stored: int | None) -> Values | None:
    """Values [height, width] at the smallest resolution that still has `smallest` pixels on each side.

    None where that is the highest, and for frames of which only the highest is safe to read: of other codecs, with
    colours, with as many bits (`stored`: as the DICOM header says) as their words have. Raises as
    `decode_frame`, and `ValueError` where the codestream holds another size than it says.
    """
    bits = min(header.bits, stored or header.bits)
    skipped = _skipped(frame, header, smallest)
    if not skipped or header.components != 1:
        return None
    if header.marker == J2K and header.bits <= 16:
        values = _jpeg_2000(frame, header, skipped)
    elif header.marker == HTJ2K and header.bits > 8 and bits < 16:
        # OpenJPH lets what overshoots run over: -1 comes as 65535.
        low = -(1 << (bits - 1)) if header.is_signed else 0
        values = decode_htj2k(frame, skipped).view(np.int16).clip(low, low + (1 << bits) - 1)
    else:
        return None
    if values.shape != (_rounded_up(header.height, skipped), _rounded_up(header.width, skipped)):
        raise ValueError("the codestream is of another size than it says")
    return values


def _rounded_up(side: int, skipped: int) -> int:
    """Of a lower resolution (ITU T.800, B-15)."""
    return -(-side >> skipped)


def _skipped(frame: bytes, header: FrameHeader, smallest: int) -> int:
    """How many of the highest resolutions can be left out; levels of the wavelet: COD segment, ITU T.800, A.6.1."""
    cod = frame.find(b"\xff\x52")
    levels = frame[cod + 9] if header.marker in {J2K, HTJ2K} and 0 <= cod < len(frame) - 9 else 0
    skipped = 0
    while skipped < levels and _rounded_up(min(header.height, header.width), skipped + 1) >= smallest:
        skipped += 1
    return skipped


def _jpeg_2000(frame: bytes, header: FrameHeader, skipped: int) -> Values:
    """Through Pillow, which decodes any resolution, by OpenJPEG; imagecodecs' OpenJPEG decodes the highest only."""
    image = Jpeg2KImageFile(BytesIO(frame))
    # Pillow rounds sizes where the standard rounds them up, and refuses what it did not expect.
    image._size = (_rounded_up(header.width, skipped) << skipped, _rounded_up(header.height, skipped) << skipped)
    image.reduce = skipped
    image.load()
    values = np.asarray(image)
    if values.dtype != np.uint8:  # Pillow spreads values of 9 to 15 bits over 16
        values = values >> (16 - header.bits)
    if not header.is_signed:
        return values
    return (values.astype(np.int32) - (1 << (header.bits - 1))).astype(f"i{values.dtype.itemsize}")
