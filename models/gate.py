"""Is this a frontal chest film the model knows? The cheap checks that come before any probability.

A film whose header says nothing passes: archives of plain JPEG have no header, and a missing tag is no evidence.
A header that says something else than a frontal chest film is believed: a probability for a hip is worse than none.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MODALITIES: Final = frozenset({"CR", "DX", "DR", "RG", "OT"})
"""DICOM PS3.3 C.7.3.1.1.1: computed and digital radiography, radiographic film; OT is what film digitisers write."""

CHEST: Final = frozenset({"CHEST", "CXR", "THORAX", "TORAX", "LUNG", "LUNGS", "PORTCHEST"})
OTHER_PARTS: Final = frozenset({"SPINE", "ABDOMEN", "ABD", "PELVIS", "NECK"})
"""Named beside the chest, these make it another film: thoracic spine, a newborn's chest and abdomen in one."""

NOT_FRONTAL: Final = frozenset(
    {"LATERAL", "LAT", "LL", "RL", "LLAT", "RLAT", "LLD", "RLD", "DECUB", "DECUBITUS", "AXIAL"}
    | {"OBLIQUE", "OBL", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO"}
)
"""Words of the DICOM View Position (0018,5101) that say lateral, oblique or lying on the side."""

BLANK_SPREAD: Final = 16
"""Fewest grey levels between the 5th and 95th percentile of a film that shows something."""


@dataclass(frozen=True, kw_only=True)
class ScanTags:
    """What the header of a scan says it shows; None where it says nothing."""

    modality: str | None = None
    body_part: str | None = None
    view: str | None = None


def _words(value: str | None) -> set[str]:
    """The upper-case words of a tag: `chest_PA ` -> {CHEST, PA}."""
    return set(re.findall(r"[A-Z0-9]+", (value or "").upper())) - {"UNKNOWN", "NONE"}


def check_tags(tags: ScanTags) -> str | None:
    """Name of the reason to reject a scan by its header: `not_xray`, `not_chest`, `not_frontal`, or None to go on."""
    modality, part, view = _words(tags.modality), _words(tags.body_part), _words(tags.view)
    if modality and not modality <= MODALITIES:
        return "not_xray"
    if part and (not part & CHEST or part & OTHER_PARTS):
        return "not_chest"
    if view & NOT_FRONTAL:
        return "not_frontal"
    return None


def check_pixels(pixels: npt.NDArray[np.uint8]) -> str | None:
    """`blank` for grey levels [H, W] that are almost uniform (a small marker or letter aside), else None."""
    step = max(1, min(pixels.shape) // 32)
    sample = np.sort(pixels[::step, ::step], axis=None)
    low, high = sample[len(sample) * 5 // 100], sample[len(sample) * 95 // 100]
    return "blank" if int(high) - int(low) < BLANK_SPREAD else None
