"""What a chain of scanners, viewers and archives does to a film: lower resolution, and JPEG.

In collections put together from several sources the coding often gives away the diagnosis (one source, one quality),
and a network learns that shortcut sooner than it learns opacities. Only films drawn for it are changed.
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from tuning.training.augment.draws import Draws, beside

LUMINANCE: Final = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Steps of the quantisation of grey levels: ITU-T T.81 (1992), annex K, table K.1; rows are vertical frequencies."""


def jpeg(films: Tensor, draws: Draws) -> Tensor:
    """float32 [N, 1, H, W] of greys from 0 to 1: coded as baseline JPEG and decoded, without its lossless part.

    Blocks of 8 x 8 from the upper left (padded by repeating the edges), DCT-II (T.81, A.3.3), the luminance table
    at the film's quality, rounding, and back. A codec's integer DCT differs by a grey level here and there.
    """
    rows = (draws.quality < 100).nonzero().squeeze(1)
    if not len(rows):
        return films
    height, width = films.shape[-2:]
    down, across = math.ceil(height / 8), math.ceil(width / 8)
    steps = beside(quantisation(draws.quality[rows])[:, None], films)
    rows = beside(rows, films)
    levels = functional.pad(
        (films[rows] * 255).round() - 128, [0, across * 8 - width, 0, down * 8 - height], "replicate"
    )
    blocks = levels.view(-1, down, 8, across, 8).transpose(2, 3).reshape(len(rows), down * across, 64)
    transform = _transform(films.device)
    coded = (blocks @ transform.T).div_(steps).round_().mul_(steps)
    decoded = (coded @ transform).view(-1, down, across, 8, 8).transpose(2, 3).reshape(-1, 1, down * 8, across * 8)
    films[rows] = decoded[..., :height, :width].add(128).round_().clamp_(0, 255).div_(255)
    return films


def quantisation(quality: Tensor) -> Tensor:
    """Quality float [N], 1 to 100 -> steps [N, 64], scaled as libjpeg's `jpeg_quality_scaling` does."""
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)[:, None]
    table = torch.tensor(LUMINANCE, dtype=torch.float32).flatten()
    return ((table * percent + 50) / 100).floor().clamp(1, 255)


@cache
def _transform(device: torch.device) -> Tensor:
    """The two-dimensional DCT-II of a block in row order, orthonormal: float32 [64, 64]."""
    place = torch.arange(8, dtype=torch.float64)
    rows = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).float().to(device)


def shrink(films: Tensor, draws: Draws) -> Tensor:
    """float32 [N, 1, H, W]: shrunk with antialiasing to a share of the side, and enlarged again, both bilinear.

    Every film has its own size, so each has its own pair of matrices, and the batch takes two batched products.
    """
    height, width = films.shape[-2:]
    sides = torch.stack([(draws.side * length).round().clamp_min(1) for length in (height, width)], dim=1)
    rows = (draws.side < 1).nonzero().squeeze(1)
    if not len(rows):
        return films
    vertical, horizontal = (
        beside(_round_trip(sides[rows, axis], length), films) for axis, length in enumerate((height, width))
    )
    rows = beside(rows, films)
    films[rows] = (vertical @ films[rows].squeeze(1) @ horizontal.transpose(1, 2)).unsqueeze(1)
    return films


def _round_trip(sides: Tensor, length: int) -> Tensor:
    """Matrices [N, length, length] that shrink a line of pixels to each of `sides` [N] and enlarge it again.

    The weights are those of `torch.nn.functional.interpolate`, bilinear with antialiasing, corners not aligned.
    """
    whole = torch.arange(length, dtype=torch.float32)
    most = int(sides.max())
    ratio = (length / sides)[:, None, None]
    # down: the centre of each small pixel in the old line, and around it a triangle as wide as the ratio
    middle = (whole[:most, None] + 0.5) * ratio
    down = (1 - (whole + 0.5 - middle).abs() / ratio).clamp_min(0)
    down = down / down.sum(dim=2, keepdim=True).clamp_min(1e-12)
    # up: the place of each old pixel among the small ones, clamped to the first and the last
    place = ((whole[:, None] + 0.5) / ratio - 0.5).clamp_min(0).minimum(sides[:, None, None] - 1)
    up = (1 - (place - whole[:most]).abs()).clamp_min(0)
    return up @ down
