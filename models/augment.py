"""Batched augmentation: the whole batch at once, on its device, every film with its own draw.

An augmented film is a film: uint8 in, uint8 out, and the same preprocessing follows. There is no mirroring: it would
put the heart on the right. It costs about a tenth of a small network's training step.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _Ranges:
    """How far strength 1 goes, either way."""

    rotation: float = math.radians(10)
    scale: float = 0.12
    shift: float = 0.06  # of the side
    shear: float = 0.05
    brightness: float = 0.1  # of the grey range
    contrast: float = 0.2
    gamma: float = 0.3  # log2 of the exponent
    noise: float = 0.03  # largest standard deviation, of the grey range


class Augment(nn.Module):
    """uint8 [N, H, W] -> uint8 [N, H, W]. `strength` 0 changes nothing, 3 is the most."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        if not 0 <= strength <= 3:
            raise InputError(f"augmentation strength {strength} is out of range; choose 0 (none) to 3")
        self.strength = strength
        self.ranges = _Ranges()

    @torch.no_grad()
    def forward(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """A changed copy; the generator must be on the pixels' device."""
        if self.strength == 0:
            return pixels
        films = self._move(pixels.unsqueeze(1).float() / 255, generator)
        films = self._expose(films, generator)
        return (films.clamp_(0, 1) * 255).round_().to(torch.uint8).squeeze(1)

    def _draw(self, like: Tensor, generator: Generator | None, reach: float) -> Tensor:
        """One uniform number of [-reach, reach] * strength for each film: [N]."""
        draw = torch.rand(like.shape[0], generator=generator, device=like.device)
        return (2 * draw - 1) * (reach * self.strength)

    def _move(self, films: Tensor, generator: Generator | None) -> Tensor:
        """Rotate, scale, shear, shift; what comes in from outside is black, as collimation is."""
        reach = self.ranges
        angle = self._draw(films, generator, reach.rotation)
        scale = torch.exp(self._draw(films, generator, reach.scale))
        shear = self._draw(films, generator, reach.shear)
        across, down = self._draw(films, generator, 2 * reach.shift), self._draw(films, generator, 2 * reach.shift)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        theta = torch.stack([cos, shear - sin, across, sin + shear, cos, down], dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(films.shape), align_corners=False)
        return functional.grid_sample(films, grid, align_corners=False)

    def _expose(self, films: Tensor, generator: Generator | None) -> Tensor:
        """Gamma, contrast about the middle grey, brightness, then noise."""
        reach = self.ranges

        def each(value: Tensor) -> Tensor:
            return value[:, None, None, None]

        gamma = torch.exp2(self._draw(films, generator, reach.gamma))
        contrast = torch.exp(self._draw(films, generator, reach.contrast))
        brightness = self._draw(films, generator, reach.brightness)
        deviation = self._draw(films, generator, reach.noise).abs()
        noise = torch.empty_like(films).normal_(generator=generator)
        films = films.clamp(0, 1).pow(each(gamma))
        return (films - 0.5) * each(contrast) + 0.5 + each(brightness) + noise * each(deviation)
