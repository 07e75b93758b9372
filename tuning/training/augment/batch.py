"""Augments a batch of films: draws for all of them, then applies one operation after the other.

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
    def forward(self, pixels: Tensor, generator: Generator | None = None, grain: Generator | None = None) -> Tensor:
        """A changed copy; the generators are those of `draw`."""
        if not self.settings.acts:
            return pixels
        drawn = draw(self.settings, pixels.shape, device=pixels.device, generator=generator, grain=grain)
        return self.change(pixels, drawn)

    @torch.no_grad()
    def change(self, pixels: Tensor, draws: Draws) -> Tensor:
        """`forward` with given draws; an operation leaves films untouched whose draw is neutral."""
        films = pixels.unsqueeze(1).float() / 255
        films = move(films, draws)
        films = expose(films, draws)
        films = grain(blur(films, draws), draws)
        films = cut_out(films, draws)
        films = jpeg(shrink(films, draws).clamp_(0, 1), draws)
        return films.mul_(255).round_().to(torch.uint8).squeeze(1)
