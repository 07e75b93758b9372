"""Is this a frontal chest film the model knows? The cheap checks that come before any probability, and one after.

A film whose header says nothing passes: archives of plain JPEG have no header, and a missing tag is no evidence.
A header that says something else than a frontal chest film is believed: a probability for a hip is worse than none.
The pixels are judged by `models/gate/orientation.py`, and a film is rejected only when they are clear.

Measured on Kermany's films at 224 x 224, of patients the templates were not fitted to (2,579 films), each also turned,
negated and cut, and on real DICOM files (`RAYSCAN_REAL_DATA=... pytest tests/models/gate/test_checks.py` measures
again):

    films                                     rejected   by a reason they deserve
    as they are                                  0.1 %
    300 originals through the whole decoding     0
    negative                                   100.0 %   99.2 %
    turned by 90, 270 degrees                  100.0 %   99.3 %
    turned by 180 degrees                       98.4 %   97.6 %
    left, right half alone                      98.8 %   98.4 %
    a quarter alone                             92.1 %   91.8 %
    upper half alone                            55.3 %   54.7 %
    lower half alone                             4.3 %    3.8 %   children's films often look so when they are whole
    three adult chests, two others (DICOM)       0 of 3, 2 of 2 (`not_chest`)
    phantoms (`pipelines/phantom`)               0 of 300

After the model has run, a film may still lie far from all the model learned from: `check_distance`.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from models.gate.orientation import Templates, load_templates, look
from models.gate.words import MODALITIES, NOT_FRONTAL, NOT_FRONTAL_CODES, OTHER_PARTS

_DIRECTIONS: Final = re.compile(r"[LRAPHF]{1,3}")
"""A value of Patient Orientation: towards left, right, anterior, posterior, head or feet, the main direction first."""

BLANK_SPREAD: Final = 16
"""Fewest grey levels between the 5th and 95th percentile of a film that shows something."""

JUDGED: Final = 64
"""Side in pixels of the smallest film whose pixels are judged for more than blankness."""
CLEAR: Final = 2.0
"""Log odds against an upright chest from which a film counts as turned, or as a negative."""
CLEARLY_CUT: Final = 5.0
"""The same for a part of a chest. More, for children's films show much of the abdomen, and some hardly an apex."""
CHESTLIKE: Final = 0.3
"""Strangeness of a righted film up to which it is a chest; 99 in 100 chests are below 0.28."""
STRANGE: Final = 0.7
"""Strangeness from which a film is no chest, whatever its orientation; no chest film had more than 0.5."""


REFUSED: Final = 0.02
"""Share of the films of a model's own patients that may be refused as unfamiliar; `models/networks/familiarity.py`."""


@dataclass(frozen=True, kw_only=True)
class ScanTags:
    """What the header of a scan says it shows; None where it says nothing."""

    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    view_code: str | None = None
    """Code value of the View Code Sequence (PS3.16, CID 4010), SNOMED CT or its older form."""
    orientation: str | None = None
    """Patient Orientation (PS3.3 C.7.6.1.1.1): where the rows point to, then the columns."""


def _words(value: str | None) -> set[str]:
    """The upper-case words of a tag: `chest_PA ` -> {CHEST, PA}."""
    return set(re.findall(r"[A-Z0-9]+", (value or "").upper())) - {"UNKNOWN", "NONE"}


def check_tags(tags: ScanTags) -> str | None:
    """Name of the reason to reject a scan by its header: `not_xray`, `not_chest`, `not_frontal`, or None to go on."""
    modality, part, view = _words(tags.modality), _words(tags.body_part), _words(tags.view)
    if modality and not modality <= MODALITIES:
        return "not_xray"
    if part & OTHER_PARTS:
        return "not_chest"
    if view & NOT_FRONTAL or tags.view_code in NOT_FRONTAL_CODES or _is_lateral(tags.orientation):
        return "not_frontal"
    return None


def _is_lateral(orientation: str | None) -> bool:
    """Whether rows or columns run from front to back. What cannot be read says nothing."""
    directions = (orientation or "").upper().split()
    valid = len(directions) == 2 and all(_DIRECTIONS.fullmatch(value) for value in directions)
    return valid and any(value[0] in "AP" for value in directions)


def check_pixels(pixels: npt.NDArray[np.uint8]) -> str | None:
    """What grey levels [H, W] show instead of a whole upright chest; None to go on.

    `blank` for a film that is almost uniform (a small marker or letter aside), `inverted` for a negative, turned or
    not, `rotated` for a film on its side or on its head, `cropped` for a part of a chest, `not_chest` for the rest.
    0.10 ms of CPU.
    """
    step = max(1, min(pixels.shape) // 32)
    sample = np.sort(pixels[::step, ::step], axis=None)
    low, high = sample[len(sample) * 5 // 100], sample[len(sample) * 95 // 100]
    if int(high) - int(low) < BLANK_SPREAD:
        return "blank"
    return _check_orientation(pixels) if min(pixels.shape) >= JUDGED else None


def check_distance(distance: float, limit: float) -> str | None:
    """`unfamiliar` for a film farther from the training films than `Familiarity.limit`; NaN is not far."""
    return "unfamiliar" if distance > limit else None


def _check_orientation(pixels: npt.NDArray[np.uint8]) -> str | None:
    seen = look(pixels, _templates())
    if seen.orientation in {"inverted", "rotated"} and seen.lead > CLEAR:
        return seen.orientation if seen.righted < CHESTLIKE else "not_chest"
    if seen.orientation == "cropped" and seen.lead > CLEARLY_CUT:
        return "cropped"
    return "not_chest" if seen.strangeness > STRANGE else None


@cache
def _templates() -> Templates:
    return load_templates()
