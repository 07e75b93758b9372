"""From the bytes of a scan to a square of grey levels. The format is told by the content, never by the name.

Whatever the bytes are, the outcome is a `Scan` or an `UnreadableScanError` with a reason from the closed list.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from models.gate import ScanTags
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.errors import UnreadableScanError
from pipelines.ingest import dicom
from pipelines.ingest.dicom import MAX_PIXELS, Header

_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_PIL_FORMATS = {"jpeg": ("JPEG",), "png": ("PNG",)}
_BARE_DICOM = (b"\x08\x00", b"\x02\x00")
"""First group of a DICOM file that lacks the 128-byte preamble: old archives hold such."""


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
    """`jpeg`, `png` or `dicom` by the first bytes; None for anything else."""
    if data[128:132] == b"DICM":
        return "dicom"
    for name, magic in _MAGIC.items():
        if data.startswith(magic):
            return name
    return "dicom" if data.startswith(_BARE_DICOM) else None


def read_header(data: bytes) -> Header:
    """Size and tags, without decoding the pixels. Raises `UnreadableScanError`."""
    kind = _known(data)
    if kind == "dicom":
        return dicom.read_header(data)
    with _opened(data, kind) as image:
        return Header(format=kind, width=image.width, height=image.height)


def decode(data: bytes, preprocessing: Preprocessing) -> Scan:
    """Decode and stretch to the model's square; antialiased bilinear. Raises `UnreadableScanError`."""
    kind = _known(data)
    if kind == "dicom":
        grey, header = dicom.read_grey(data)
        return Scan(pixels=_stretched(Image.fromarray(grey), preprocessing.size), header=header)
    with _opened(data, kind) as image:
        header = Header(format=kind, width=image.width, height=image.height)
        if kind == "jpeg" and preprocessing.decode == "dct":
            # libjpeg then decodes at the smallest n/8 scale that is still twice the size: a quarter of the CPU saved,
            # probabilities moved by 0.002 on average.
            image.draft("L", (2 * preprocessing.size, 2 * preprocessing.size))
        return Scan(pixels=_stretched(_as_grey(image), preprocessing.size), header=header)


def _known(data: bytes) -> str:
    if not data:
        raise UnreadableScanError(Reason.EMPTY_FILE)
    kind = sniff(data)
    if kind is None:
        raise UnreadableScanError(Reason.UNKNOWN_FORMAT)
    return kind


@contextmanager
def _opened(data: bytes, kind: str) -> Iterator[Image.Image]:
    """The image, its header read and found sane; errors of decoding inside the block become reasons too."""
    try:
        Image.MAX_IMAGE_PIXELS = None  # Pillow only warns at its limit; ours, below, refuses before decoding
        image = Image.open(BytesIO(data), formats=_PIL_FORMATS[kind])
        if image.width * image.height == 0:
            raise UnreadableScanError(Reason.NO_PIXELS)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableScanError(Reason.TOO_LARGE)
        with image:
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableScanError(_header_fault(data, kind)) from error
    except (OSError, EOFError) as error:
        reason = Reason.TRUNCATED if "truncated" in str(error) else Reason.CORRUPT
        raise UnreadableScanError(reason) from error
    except (SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise UnreadableScanError(Reason.CORRUPT) from error


def _header_fault(data: bytes, kind: str) -> Reason:
    """Why Pillow finds no image behind the right magic."""
    if kind == "png":
        # The IHDR chunk: width and height are its first eight bytes, 16 into the file (PNG 1.2, section 4.1.1).
        if len(data) < 33:
            return Reason.TRUNCATED
        if b"\0\0\0\0" in (data[16:20], data[20:24]):
            return Reason.NO_PIXELS
    return Reason.CORRUPT if data.rstrip(b"\0").endswith(b"\xff\xd9") or kind == "png" else Reason.TRUNCATED


def _as_grey(image: Image.Image) -> Image.Image:
    if image.mode in {"I;16", "I;16B", "I"}:  # PNG of 16 bits
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("L")
    return image.convert("L")


def _stretched(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)
