"""How far and how often films are augmented: what a person or a search chooses."""

import math
from dataclasses import dataclass
from typing import Final

from models.errors import InputError

OPERATIONS: Final = (
    "rotation", "scale", "stretch", "shear", "shift", "gamma", "contrast", "brightness", "noise", "blur", "cutout",
    "elastic", "jpeg", "shrink",
)  # fmt: skip
"""What `Augmentation.operations` picks from. Mirroring is never picked: see `Augmentation.flip`."""

WORST_QUALITY: Final = 5
"""Lowest JPEG quality, whatever the magnitude."""
SMALLEST: Final = 0.2
"""Smallest share of the side that a film is shrunk to, whatever the magnitude."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The largest changes at strength or magnitude 1. Lengths are shares of the side, greys of the grey range.

    Position and exposure vary so much that no film of the Kermany archive keeps the framing, shape or contrast typical
    of its class: at 0.6 of this reach, a network judged films by how tightly they were framed (specificity 0.6 to 0.8
    on copies made taller or cropped, against 0.98 on the original films).
    """

    rotation: float = math.radians(10)
    """Radians, either way."""
    scale: float = 0.2
    """Natural logarithm of the factor, either way."""
    stretch: float = 0.4
    """Natural logarithm of width over height, either way. Films of any shape are made square, so their shape becomes
    stretch. In the Kermany originals it differs by class, with a median of 1.21 for normal films and 1.48 for
    pneumonia: a logarithm of 0.20, which must not decide."""
    shear: float = 0.05
    shift: float = 0.1
    """Either way, across and down."""
    gamma: float = 0.5
    """Binary logarithm of the exponent, either way."""
    contrast: float = 0.3
    """Natural logarithm of the factor about the middle grey, either way."""
    brightness: float = 0.15
    noise: float = 0.03
    """Largest standard deviation."""
    blur: float = 0.008
    """Largest standard deviation: 1.8 pixels of 224."""
    cutout: float = 0.3
    """Largest side of the square."""
    elastic: float = 0.02
    """Largest standard deviation of a control point's displacement."""
    jpeg: float = 65.0
    """Largest loss of quality, from 95: 30 remains."""
    shrink: float = 0.5
    """Largest share of the side that is lost."""


REACH: Final = Reach()


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Which changes, how far, and for which share of the films. The default changes nothing.

    Changes given as a share of the films go up to their whole reach, whatever the strength.
    """

    strength: float = 0.0
    """Strength of position (rotation, scale, stretch, shear, shift), exposure (gamma, contrast, brightness) and noise,
    which every film gets: each by a uniform draw up to this many times its reach. 0 for none, 3 at most."""
    flip: float = 0.0
    """Share of films mirrored left to right. Off by default: a mirrored film shows situs inversus (the heart on the
    right, the liver on the left) with its side marker in mirror writing, which is another patient and not another view
    of this one; a network trained on such films can no longer use the side."""
    blur: float = 0.0
    """Share of films blurred (Gaussian)."""
    cutout: float = 0.0
    """Share of films with a square covered by their mean grey (DeVries & Taylor 2017)."""
    elastic: float = 0.0
    """Share of films bent by a coarse grid of random displacements (Ronneberger et al. 2015, sec. 3.1)."""
    jpeg: float = 0.0
    """Share of films coded again as JPEG of a drawn quality, so that a site's coding says less about its
    diagnoses."""
    shrink: float = 0.0
    """Share of films shrunk and enlarged again, so that a scanner's sharpness says less about its diagnoses."""
    operations: int = 0
    """Above 0, in place of `strength` and of all shares but `flip`: this many of `OPERATIONS`, drawn without repetition
    for each film, each by a uniform draw up to `magnitude` times its reach (after RandAugment: Cubuk et al. 2020, which
    draws with repetition and always applies the full magnitude)."""
    magnitude: float = 1.0
    """Magnitude of drawn operations; 0 to 3."""

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("magnitude", self.magnitude)):
            if not 0 <= value <= 3:
                raise InputError(f"augmentation {name} {value} is out of range; choose 0 (none) to 3")
        for name in ("flip", "blur", "cutout", "elastic", "jpeg", "shrink"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InputError(f"augmentation: {name}={share} is not a share of the films; choose 0 to 1")
        if not 0 <= self.operations <= len(OPERATIONS):
            raise InputError(
                f"augmentation: operations={self.operations} is out of range; choose 0 (none) to {len(OPERATIONS)}"
            )

    @property
    def acts(self) -> bool:
        """Whether any film may change."""
        if self.operations:
            return self.magnitude > 0 or self.flip > 0
        shares = (self.flip, self.blur, self.cutout, self.elastic, self.jpeg, self.shrink)
        return self.strength > 0 or any(shares)
