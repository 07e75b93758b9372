"""Where a film tells how it was made: its border, and what compression left in its pixels."""

from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipelines.ingest.near_copies import THUMB

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_EDGE, _CORNER, _INSIDE = 2, 4, 4
"""Width of the border of a 32 x 32 thumbnail, side of its corners, and where the ring inside the border ends."""
_DARK: Final = 12
_SPECK: Final = 90
"""Grey levels by which a marker or letter is brighter than what is around it."""
_QUALITIES: Final = (30, 75, 95)


def _masks() -> dict[str, Mask]:
    y, x = np.mgrid[:THUMB, :THUMB]
    far_y, far_x = np.minimum(y, THUMB - 1 - y), np.minimum(x, THUMB - 1 - x)
    corners = (far_y < _CORNER) & (far_x < _CORNER)
    border = corners | (far_y < _EDGE) | (far_x < _EDGE)
    return {
        "border": border,
        "corners": corners,
        "top": (y < _EDGE),
        "bottom": (y >= THUMB - _EDGE),
        "left": (x < _EDGE),
        "right": (x >= THUMB - _EDGE),
        "inside": ~border & ((far_y < _INSIDE) | (far_x < _INSIDE)),
        "centre": ~border & (far_y >= _INSIDE) & (far_x >= _INSIDE),
    }


MASKS: Final = _masks()
"""Parts of a thumbnail [32, 32] by name; `border` is the edges and the corners together."""


def collimation(film: Pixels) -> list[float]:
    """Width of the dark bar at the top, bottom, left and right of a film [N, N], as shares of its side."""
    widths = []
    for lines in (film, film[::-1], film.T, film.T[::-1]):
        lit = np.percentile(lines, 90, axis=1) > _DARK
        widths.append(float(np.argmax(lit)) / len(lit) if lit.any() else 1.0)
    return widths


def specks(film: Pixels) -> list[float]:
    """Share of the outer quarter of a film [N, N] that is much brighter than around it, by quadrant: burned-in text."""
    around = np.asarray(Image.fromarray(film).reduce(8).resize(film.shape[::-1], Image.Resampling.BILINEAR))
    bright = film.astype(np.int16) - around > _SPECK
    quarter, half = len(film) // 4, len(film) // 2
    bright[quarter:-quarter, quarter:-quarter] = False
    return [float(part.mean()) for side in (bright[:half], bright[half:]) for part in (side[:, :half], side[:, half:])]


def texture(film: Pixels) -> list[float]:
    """What compression leaves in a film: its size as a JPEG of three qualities, and its sharpness down and across."""
    sizes = []
    for quality in _QUALITIES:
        file = BytesIO()
        Image.fromarray(film).save(file, "JPEG", quality=quality)
        sizes.append(float(file.tell()))
    grey = film.astype(np.float32)
    return [*sizes, *(float(np.abs(np.diff(grey, 2, axis=axis)).mean()) for axis in (0, 1))]


def jpeg_settings(data: bytes) -> tuple[float, float]:
    """Quality (1 to 100, of the IJG scale, estimated) and components of a JPEG file; NaN for others."""
    try:
        with JpegImageFile(BytesIO(data)) as image:
            table = np.array(image.quantization[0], dtype=np.float64)
            components = float(image.layers)
    except (OSError, SyntaxError, KeyError, ValueError, AttributeError, IndexError):
        return float("nan"), float("nan")
    scale = 100 * table.mean() / 57.625  # 57.625 is the mean of the table of quality 50 (ITU T.81, table K.1)
    return round(5000 / scale if scale > 100 else 100 - scale / 2, 1), components
