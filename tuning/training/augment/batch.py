"""Batched augmentation: the whole batch at once, on its device, every film with its own draw.

An augmented film is a film: uint8 in, uint8 out, and the same preprocessing follows.

    settings.py  how far and how often: what a person or a search chooses
    draws.py     one draw for each film, all of it before the first pixel changes
    geometry.py  where a pixel comes from: affine, elastic, mirrored, all in one sampling
    exposure.py  what grey it has: gamma, contrast, brightness, blur, grain, a piece cut out
    coding.py    what a chain of viewers and archives does to it: lower resolution, JPEG

The usual changes take 0.7 ms of one CPU core for a film of 224 px (`tests/benchmarks/test_augment_cost.py`).
torchvision's transforms, film by film, took twice that for about the same list.
"""

import torch
from torch import Generator, Tensor, nn

from tuning.training.augment.coding import jpeg, shrink
from tuning.training.augment.draws import Draws, draw
from tuning.training.augment.exposure import blur, cut_out, expose, grain
from tuning.training.augment.geometry import move
from tuning.training.augment.settings import Augmentation

__all__ = ["Augment", "Augmentation", "Draws", "draw"]


class Augment(nn.Module):
    """uint8 [N, H, W] -> uint8 [N, H, W]. A plain number is the strength of the usual changes; 0 changes nothing."""

    def __init__(self, settings: Augmentation | float) -> None:
        super().__init__()
        self.settings = settings if isinstance(settings, Augmentation) else Augmentation(strength=settings)

    @torch.no_grad()
    def forward(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """A changed copy; the generator must be on the pixels' device."""
        if not self.settings.acts:
            return pixels
        return self.change(pixels, draw(self.settings, pixels.shape, device=pixels.device, generator=generator))

    @torch.no_grad()
    def change(self, pixels: Tensor, draws: Draws) -> Tensor:
        """What `forward` does with given draws; films whose draw is neutral pass a step untouched."""
        films = pixels.unsqueeze(1).float() / 255
        films = move(films, draws)
        films = expose(films, draws)
        films = grain(blur(films, draws), draws)
        films = cut_out(films, draws)
        films = jpeg(shrink(films, draws).clamp_(0, 1), draws)
        return films.mul_(255).round_().to(torch.uint8).squeeze(1)
