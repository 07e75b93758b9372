"""Compressed frames of 12-bit films, one encoder for each codec of DICOM."""

from collections.abc import Callable

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import uid

Encode = Callable[[npt.NDArray[np.uint16]], bytes]


def _jpeg_2000(film: npt.NDArray[np.uint16], form: str) -> bytes:
    frame: bytes = imagecodecs.jpeg2k_encode(film, level=0, codecformat=form, bitspersample=12, reversible=True)
    return frame


LOSSLESS: dict[str, tuple[uid.UID, Encode]] = {
    "jpeg_lossless": (uid.JPEGLossless, lambda film: imagecodecs.jpeg8_encode(film, lossless=True, bitspersample=12)),
    "jpeg_lossless_sv1": (
        uid.JPEGLosslessSV1,
        lambda film: imagecodecs.jpeg8_encode(film, lossless=True, predictor=1, bitspersample=12),
    ),
    "jpeg_ls": (uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "jpeg_2000": (uid.JPEG2000Lossless, lambda film: _jpeg_2000(film, "J2K")),
    "jpeg_2000_boxed": (uid.JPEG2000Lossless, lambda film: _jpeg_2000(film, "JP2")),
    "htj2k": (uid.HTJ2KLossless, lambda film: imagecodecs.htj2k_encode(film, reversible=True)),
}
"""Name -> transfer syntax, and encoder that keeps every value."""
EXTENDED: tuple[uid.UID, Encode] = (
    uid.JPEGExtended12Bit,
    lambda film: imagecodecs.jpeg8_encode(film, level=95, bitspersample=12),
)
