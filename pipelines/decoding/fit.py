"""From a film of any shape to the model's square: cut, fitted and, if asked for, harmonised.

`squash` stretches (Kermany's films come so, too); `letterbox` keeps the shape and adds black bars; `crop` keeps the
shape and takes the middle. No fit hides how a film was made: stretched anatomy, the width of the bars and how much was
cut all tell the shape the file had, and on Kermany's originals the shape alone tells the classes apart with AUC 0.888.

`harmonise` is the way out: every film is cut to one shape first, so that stretching, bars and cuts are the same for
all; its grey levels from the 1st to the 99th percentile are spread over the whole range; detail finer than a pixel of a
film at 224, where compression leaves its traces, is smoothed; and the border, which holds collimation, markers and
burned-in text more often than lung, is black. It takes away what a model could read of the machine, and a little
of the disease: `rayscan audit` shows both, measured on the films in question.

The numbers below are part of every model trained with them: do not change them, add a way of another name.
"""

from functools import cache
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from models.spec import Preprocessing

SEEN: Final = 0.9375
"""Half axis of the superellipse of degree 4 inside which a harmonised film is seen, in halves of its side: a 32nd of
the side is black at the middle of each edge, and the corners are round."""
SMOOTHED: Final = 1 / 224
"""Deviation of the Gaussian that smooths a harmonised film, in sides of the film."""
LOW, HIGH = 1, 99
"""Percentiles of the seen grey levels that become black and white."""
LEAST_SPREAD: Final = 16
"""Grey levels between the 5th and 95th percentile below which a film is not stretched: the gate is to see it blank."""

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]


def fitted(image: Image.Image, preprocessing: Preprocessing, full: tuple[int, int] | None = None) -> Pixels:
    """The film of a grey image (mode L) of any shape: uint8 [film_size, film_size]; antialiased bilinear.

    `full`: width and height of the scan, of which `image` may be a lower resolution of JPEG 2000.
    """
    size = preprocessing.film_size
    box = kept(*(full or image.size), preprocessing)
    if full and full != image.size:
        image, box = _lower_resolution(image, box, round(full[0] / image.width))
    wide, high = (size, size) if preprocessing.fit != "letterbox" else _inside(box, size)
    film = image.resize((wide, high), Image.Resampling.BILINEAR, box=box)
    if (wide, high) != (size, size):
        square = Image.new("L", (size, size))
        square.paste(film, ((size - wide) // 2, (size - high) // 2))
        film = square
    return np.asarray(film, dtype=np.uint8) if preprocessing.harmonise is None else harmonised(film)


def kept(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """Left, top, right and bottom of what is kept of an image of this shape, in its pixels."""
    box = (0.0, 0.0, float(width), float(height))
    if preprocessing.harmonise is not None:
        box = _middle(box, preprocessing.harmonise)
    return _middle(box, 1.0) if preprocessing.fit == "crop" else box


def _lower_resolution(image: Image.Image, box: Box, step: int) -> tuple[Image.Image, Box]:
    """The image with one more row and column, and the box in its pixels.

    A pixel of a lower resolution lies where the first of its `step` pixels lies, not in their middle (ITU T.800, annex
    F: the low-pass is centred on even samples); so the last of them lie outside the image.
    """
    grey = np.pad(np.asarray(image), ((0, 1), (0, 1)), mode="edge")
    left, top, right, bottom = ((edge - 0.5) / step + 0.5 for edge in box)
    return Image.fromarray(grey), (left, top, right, bottom)


def least_side(width: int, height: int, preprocessing: Preprocessing) -> int:
    """The shorter side that an image of this shape may be decoded to, without what is kept of it getting too coarse."""
    size = preprocessing.film_size
    if not width or not height:  # decoding will say so
        return size
    left, top, right, bottom = kept(width, height, preprocessing)
    sides = (right - left, bottom - top)
    needed = max(sides) if preprocessing.fit == "letterbox" else min(sides)
    return max(1, ceil(size * min(width, height) / needed - 1e-6))


def harmonised(film: Image.Image) -> Pixels:
    """A square film without its border, contrast and finest detail; see above. The film is uint8 [N, N] as an image."""
    seen = _seen(film.width)
    grey = np.asarray(film.filter(ImageFilter.GaussianBlur(SMOOTHED * film.width)), dtype=np.float32)
    low, dark, bright, high = np.percentile(grey[seen], [LOW, 5, 95, HIGH])
    if bright - dark >= LEAST_SPREAD:
        grey = np.clip((grey - low) * (255 / (high - low)), 0, 255)
    return np.where(seen, np.rint(grey), 0).astype(np.uint8)


@cache
def _seen(size: int) -> npt.NDArray[np.bool_]:
    """Where a harmonised film is seen [size, size]."""
    at = (np.arange(size) - (size - 1) / 2) / (size / 2)
    seen: npt.NDArray[np.bool_] = at[:, None] ** 4 + at**4 <= SEEN**4
    return seen


def _middle(box: Box, aspect: float) -> Box:
    """The largest part of a box, around its middle, that is `aspect` times as wide as high."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    over_x, over_y = max(0.0, wide - high * aspect) / 2, max(0.0, high - wide / aspect) / 2
    return left + over_x, top + over_y, right - over_x, bottom - over_y


def _inside(box: Box, size: int) -> tuple[int, int]:
    """Width and height, in pixels, of a box shrunk or enlarged until it just fits a square."""
    left, top, right, bottom = box
    scale = size / max(right - left, bottom - top)
    return max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
