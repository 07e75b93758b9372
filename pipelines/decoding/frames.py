"""The compressed frame of a DICOM file: taken out of its fragments, whole, and of the size the header says."""

import struct
from dataclasses import dataclass
from typing import Final

from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError

JPEG: Final = b"\xff\xd8"
JPEG_2000: Final = b"\xff\x4f\xff\x51"
END: Final = b"\xff\xd9"
"""End of image (ITU T.81, B.1.1.3) and end of codestream (T.800, A.2): the same two bytes in every family of JPEG."""
_PADS: Final = b"\0\xff "
"""What writers fill a frame up with: DICOM asks for a 00 to an even length; FF and blanks are seen."""
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n"

_TILE_PART: Final = b"\xff\x90\x00\x0a"
_STARTS_OF_FRAME: Final = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
JPEG_LS: Final = 0xF7
J2K: Final = 0x51
HTJ2K: Final = 0x50
"""Not starts of frame: the second bytes of the SIZ and the CAP marker, which tell them."""
LOSSLESS: Final = 0xC3


@dataclass(frozen=True, kw_only=True)
class FrameHeader:
    """What a compressed frame says of itself."""

    marker: int
    """Second byte of the marker that tells the codec: a start of frame, J2K or HTJ2K."""
    height: int
    width: int
    components: int
    bits: int
    is_signed: bool = False
    """Of JPEG 2000 and HTJ2K, which can say so."""


def whole_frame(data: bytes) -> bytes:
    """The frame up to its end marker, the bytes that pad it cut off.

    Raises `UnreadableScanError` (truncated) where it is cut short: libjpeg would fill up what is missing with grey.
    """
    if data.startswith(_JP2):  # the codestream alone belongs into DICOM; some put the file's boxes around it
        data = data[max(data.find(JPEG_2000), 0) :]
    frame = data[: data.rfind(END) + 2] if END in data[-4096:] else b""
    if frame and not data[len(frame) :].strip(_PADS):
        return frame
    if data.startswith(JPEG_2000) and (end := _end_of_tile_parts(data)):
        return data[:end] + END
    raise UnreadableScanError(Reason.TRUNCATED, "the compressed image has no end")


def frame_header(frame: bytes) -> FrameHeader:
    """Size and codec of a frame. Raises `UnreadableScanError` (corrupt) for what is no frame."""
    try:
        return _siz(frame) if frame.startswith(JPEG_2000) else _start_of_frame(frame)
    except (IndexError, struct.error):
        raise UnreadableScanError(Reason.CORRUPT, "no header in the compressed image") from None


def _start_of_frame(frame: bytes) -> FrameHeader:
    """From the start of frame (ITU T.81, B.2.2; T.87, C.2.2)."""
    place = 2
    while frame.startswith(JPEG) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in _STARTS_OF_FRAME:
            bits, height, width, components = struct.unpack(">BHHB", frame[place + 4 : place + 10])
            return FrameHeader(marker=marker, height=height, width=width, components=components, bits=bits)
        place += 1 if marker == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise UnreadableScanError(Reason.CORRUPT, "no header in the compressed image")


def _siz(frame: bytes) -> FrameHeader:
    """From the SIZ segment (ITU T.800, A.5.1): far corner of the image, then its near corner; HTJ2K has CAP behind."""
    length, _, right, bottom, left, top = struct.unpack(">HHIIII", frame[4:24])
    components, bits = struct.unpack(">HB", frame[40:43])
    high_throughput = frame[4 + length : 6 + length] == b"\xff\x50"
    return FrameHeader(
        marker=HTJ2K if high_throughput else J2K,
        height=bottom - top,
        width=right - left,
        components=components,
        bits=(bits & 0x7F) + 1,
        is_signed=bits >= 0x80,
    )


def _end_of_tile_parts(frame: bytes) -> int | None:
    """Where the tile-parts end (ITU T.800, A.4.2) of a codestream that some writers leave without its end marker.

    None if one of them is cut short.
    """
    place = frame.find(_TILE_PART)
    while place >= 0 and frame.startswith(_TILE_PART, place) and place + 10 <= len(frame):
        length = int.from_bytes(frame[place + 6 : place + 10], "big")
        if length < 12 or place + length > len(frame):
            return None
        place += length
    return place if place > 0 and not frame[place:].strip(_PADS) else None
