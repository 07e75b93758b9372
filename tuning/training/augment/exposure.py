"""The grey levels of a film: gamma, contrast, brightness, blur, noise, and a square cut out.

All take float32 [N, 1, H, W] of greys from 0 to 1 and give the same shape; greys may leave that range until the end.
Films passed in may be changed in place.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tuning.training.augment.draws import Draws, beside


def each(value: Tensor) -> Tensor:
    """One number for each film [N], shaped to broadcast over films [N, 1, H, W]."""
    return value[:, None, None, None]


def expose(films: Tensor, draws: Draws) -> Tensor:
    """Gamma, then contrast about the middle grey, then brightness."""
    if not torch.stack([draws.gamma, draws.contrast, draws.brightness]).any():
        return films
    contrast = torch.exp(draws.contrast)
    powers = torch.stack([torch.exp2(draws.gamma), contrast, 0.5 - 0.5 * contrast + draws.brightness])
    exponent, factor, added = beside(powers, films)
    return films.clamp_(0, 1).pow_(each(exponent)).mul_(each(factor)).add_(each(added))


def blur(films: Tensor, draws: Draws) -> Tensor:
    """Gaussian blur, cut off at three standard deviations, with the film reflected at its edges."""
    rows = (draws.blur > 0).nonzero().squeeze(1)
    if not len(rows):
        return films
    height, width = films.shape[-2:]
    deviation = draws.blur[rows] * width
    radius = min(int(3 * float(deviation.max()) + 0.5), height - 1, width - 1)
    if radius == 0:
        return films
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset / deviation[:, None]) ** 2)
    # each film has its own cut-off, whatever the other films of the batch have
    weights = torch.where(offset.abs() <= (3 * deviation[:, None] + 0.5).floor(), weights, 0.0)
    weights = beside((weights / weights.sum(dim=1, keepdim=True))[:, None], films)
    rows = beside(rows, films)
    padded = functional.pad(films[rows], [radius] * 4, mode="reflect").transpose(0, 1)
    across = functional.conv2d(padded, weights[:, :, None, :], groups=len(rows))
    films[rows] = functional.conv2d(across, weights[:, :, :, None], groups=len(rows)).transpose(0, 1)
    return films


def grain(films: Tensor, draws: Draws) -> Tensor:
    """Add Gaussian noise, independent for each pixel."""
    if not len(draws.grain):
        return films
    if len(draws.grain) == len(films):
        return films.addcmul_(draws.grain, each(beside(draws.noise, films)))
    rows = (draws.noise > 0).nonzero().squeeze(1)
    films[beside(rows, films)] += draws.grain * each(beside(draws.noise[rows], films))
    return films


def cut_out(films: Tensor, draws: Draws) -> Tensor:
    """Cover a square with the film's mean grey; it may reach beyond the edge."""
    rows = (draws.cutout > 0).nonzero().squeeze(1)
    if not len(rows):
        return films
    half = draws.cutout[rows, None] / 2
    inside = []
    for length, centre in zip(films.shape[-2:], draws.centre[rows].flip(1).unbind(1), strict=True):
        place = (torch.arange(length) + 0.5) / length
        inside.append(beside((place - centre[:, None]).abs() < half, films))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    rows = beside(rows, films)
    chosen = films[rows]
    films[rows] = torch.where(square, chosen.mean(dim=(2, 3), keepdim=True), chosen)
    return films
