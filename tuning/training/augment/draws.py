"""One draw for each film, all before the first pixel changes, so that a plain loop over films can repeat them.

Draws lie in the host's memory, whatever device the films are on: which films an operation has drawn is then known
without asking a GPU, which would have to finish all work before it first. Only the grain is drawn where the films are:
it is as large as they.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor

from tuning.training.augment.settings import OPERATIONS, REACH, SMALLEST, WORST_QUALITY, Augmentation

CONTROL_POINTS: Final = 5
"""Points of the elastic grid along each side."""
BEST_QUALITY: Final = 95.0
"""JPEG quality at strength 0; strength lowers it."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The draws for N films, on the CPU; float32 [N] unless stated otherwise. `Draws.none` changes nothing."""

    mirrored: Tensor
    """bool [N]."""
    rotation: Tensor
    """Radians."""
    scale: Tensor
    """Natural logarithm of the factor by which the film's field of view grows."""
    stretch: Tensor
    """Natural logarithm of the factor by which width over height grows, at the same field of view."""
    shear: Tensor
    across: Tensor
    """Shift in shares of half the side, like `down`."""
    down: Tensor
    elastic: Tensor
    """Displacement [N, 2, 5, 5] (x, y) of the control points, in shares of the side; the outer ones lie on the edge."""
    gamma: Tensor
    """Binary logarithm of the exponent."""
    contrast: Tensor
    """Natural logarithm of the factor about the middle grey."""
    brightness: Tensor
    """Added, in shares of the grey range."""
    blur: Tensor
    """Standard deviation in shares of the side."""
    noise: Tensor
    """Standard deviation in shares of the grey range."""
    grain: Tensor
    """Standard normal [K, 1, H, W], for the K films whose `noise` is above 0; on the films' device."""
    cutout: Tensor
    """Side of the square in shares of the film's side; 0 is none."""
    centre: Tensor
    """Centre of the square [N, 2] (across, down), in shares of the side."""
    quality: Tensor
    """JPEG quality, 1 to 95; 100 is none."""
    side: Tensor
    """Share of the side the film is shrunk to; 1 is none."""

    @classmethod
    def none(cls, count: int) -> "Draws":
        """Draws that leave N films unchanged."""
        zero = torch.zeros(count)
        return cls(
            mirrored=torch.zeros(count, dtype=torch.bool),
            **dict.fromkeys(("rotation", "scale", "stretch", "shear", "across", "down"), zero),
            **dict.fromkeys(("gamma", "contrast", "brightness", "blur", "noise", "cutout"), zero),
            elastic=torch.zeros(count, 2, CONTROL_POINTS, CONTROL_POINTS),
            grain=torch.empty(0, 1, 1, 1),
            centre=torch.full((count, 2), 0.5),
            quality=torch.full((count,), 100.0),
            side=torch.ones(count),
        )


def beside(value: Tensor, films: Tensor) -> Tensor:
    """A copy of drawn values on the films' device; the host does not wait for it."""
    held = value.pin_memory() if films.device.type == "cuda" else value
    return held.to(films.device, non_blocking=True)


def draw(
    settings: Augmentation,
    shape: torch.Size,
    *,
    device: torch.device,
    generator: Generator | None = None,
    grain: Generator | None = None,
) -> Draws:
    """Draw for films of shape [N, H, W] on a device, each by itself. The same states of generators, the same draws.

    `generator` is one of the CPU; `grain` one of the films' device, and by default the same.
    """
    count, height, width = shape

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    strengths = _strengths(settings, uniform)
    still = torch.zeros(count)

    def amount(operation: str, *, low: float = -1.0) -> Tensor:
        """A uniform draw of [low, 1] times the film's strength of the operation."""
        strength = strengths.get(operation)
        return still if strength is None else uniform(low) * strength

    drawn: dict[str, Tensor] = {
        "rotation": amount("rotation") * REACH.rotation,
        "scale": amount("scale") * REACH.scale,
        "stretch": amount("stretch") * REACH.stretch,
        "shear": amount("shear") * REACH.shear,
        "across": amount("shift") * (2 * REACH.shift),
        "down": amount("shift") * (2 * REACH.shift),
        "gamma": amount("gamma") * REACH.gamma,
        "contrast": amount("contrast") * REACH.contrast,
        "brightness": amount("brightness") * REACH.brightness,
        "noise": amount("noise").abs() * REACH.noise,
        "blur": amount("blur", low=0) * REACH.blur,
        "cutout": amount("cutout", low=0) * REACH.cutout,
        "quality": _quality(amount("jpeg", low=0)),
        "side": (1 - amount("shrink", low=0) * REACH.shrink).clamp_min(SMALLEST),
        "mirrored": uniform() < settings.flip if settings.flip else still.bool(),
        "centre": still.new_full((count, 2), 0.5),
        "elastic": still.new_zeros(count, 2, CONTROL_POINTS, CONTROL_POINTS),
        "grain": still.new_empty(0, 1, 1, 1),
    }
    if "cutout" in strengths:
        drawn["centre"] = torch.rand(count, 2, generator=generator)
    if "elastic" in strengths:
        drawn["elastic"].normal_(generator=generator)
        drawn["elastic"] *= (amount("elastic", low=0) * REACH.elastic)[:, None, None, None]
    if "noise" in strengths:
        # only for the films that get it: a normal draw for each pixel is a fifth of the cost of augmentation
        noisy = int((drawn["noise"] > 0).sum())
        drawn["grain"] = torch.empty(noisy, 1, height, width, device=device).normal_(generator=grain or generator)
    return Draws(**drawn)


def _strengths(settings: Augmentation, uniform: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The strength of each operation for each film [N], 0 for none; operations that act on no film are left out."""
    if settings.operations:
        scores = torch.stack([uniform() for _ in OPERATIONS], dim=1)
        chosen = scores.argsort(dim=1)[:, : settings.operations]
        acts = torch.zeros_like(scores).scatter_(1, chosen, settings.magnitude)
        return dict(zip(OPERATIONS, acts.unbind(1), strict=True)) if settings.magnitude else {}
    strengths: dict[str, Tensor] = {}
    for operation in OPERATIONS:
        share = getattr(settings, operation, None)
        if share is None and settings.strength:
            strengths[operation] = torch.tensor(settings.strength)
        elif share:
            strengths[operation] = (uniform() < share).float()
    return strengths


def _quality(lost: Tensor) -> Tensor:
    quality = (BEST_QUALITY - lost * REACH.jpeg).round().clamp_min(WORST_QUALITY)
    return torch.where(lost > 0, quality, 100.0)
