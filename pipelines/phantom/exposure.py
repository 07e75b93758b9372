"""From attenuation to the grey levels of one film: the effects of tube, detector and technician."""

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipelines.errors import InputError
from pipelines.phantom.fields import Field

Range = tuple[float, float]
"""Lowest and highest value; every film draws its own in between."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """How a machine turns attenuation into grey levels. The defaults are those of `HOME_SCANNER`."""

    gamma: Range = (0.8, 1.3)
    """Above 1 the lungs are darker and contrast more with bone."""
    gain: Range = (0.85, 1.1)
    """Factor applied to the attenuation to the power of gamma."""
    fog: Range = (0.0, 0.07)
    """Grey level of open air, as a share of white."""
    grain: Range = (0.006, 0.016)
    """Standard deviation of the noise at middle grey, as a share of white."""

    def __post_init__(self) -> None:
        for name, (low, high) in asdict(self).items():
            if not 0 <= low <= high:
                raise InputError(f"scanner with {name} {low} to {high}; choose 0 or more, the lower end first")


HOME_SCANNER: Final = Scanner()
FOREIGN_SCANNER: Final = Scanner(gamma=(1.5, 2.0), gain=(0.6, 0.8), fog=(0.0, 0.03), grain=(0.02, 0.035))
"""Darker, flatter and noisier than `HOME_SCANNER`: still chests to the eye, but an alarm in drift."""

_MARKER_R = ((0, 6, 0, 0), (0, 0, 3, 0), (3, 0, 4, 1), (4, 1, 4, 2), (4, 2, 3, 3), (3, 3, 0, 3), (2, 3, 4, 6))
"""The strokes of the letter R, on a grid 4 wide and 6 high."""


def expose(attenuation: Field, rng: np.random.Generator, scanner: Scanner) -> npt.NDArray[np.uint8]:
    """Tone curve, quantum noise, collimator edge and side marker: attenuation [H, W] to grey uint8 [H, W]."""
    height, width = attenuation.shape
    gamma, gain, fog = rng.uniform(*scanner.gamma), rng.uniform(*scanner.gain), rng.uniform(*scanner.fog)
    level = np.clip(attenuation * np.float32(1.12), 0, 1.25) ** np.float32(gamma)
    level = fog + gain * level
    # Toe and shoulder of a film's response: whites are compressed, never cut.
    level = np.where(level > 0.65, 0.65 + 0.30 * np.tanh((level - 0.65) / 0.30), level)
    grain = rng.standard_normal(attenuation.shape, np.float32)
    level += grain * np.float32(rng.uniform(*scanner.grain)) * (0.4 + level)
    if rng.random() < 0.3:
        edge = int(width * rng.uniform(0.01, 0.05))
        level[:, : edge if rng.random() < 0.5 else 0] *= 0.15
        level[: int(height * rng.uniform(0.0, 0.02))] *= 0.15
    pixels = np.asarray(np.clip(level * 255, 0, 255), np.uint8)
    if rng.random() < 0.8:
        _stamp_marker(pixels, rng)
    return pixels


def _stamp_marker(pixels: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """The technician's lead R beside the patient's right shoulder."""
    height, width = pixels.shape
    unit = height * rng.uniform(0.006, 0.010)
    left, top = int(width * rng.uniform(0.01, 0.08)), int(height * rng.uniform(0.03, 0.5))
    patch = Image.new("L", (int(6 * unit) + 2, int(8 * unit) + 2))
    draw = ImageDraw.Draw(patch)
    for x0, y0, x1, y1 in _MARKER_R:
        draw.line(
            [unit * (x0 + 0.5), unit * (y0 + 0.5), unit * (x1 + 0.5), unit * (y1 + 0.5)], 235, max(1, round(unit))
        )
    stamp = np.asarray(patch)[: height - top, : width - left]
    target = pixels[top : top + stamp.shape[0], left : left + stamp.shape[1]]
    np.maximum(target, stamp, out=target)
