"""Mixup and cutmix. Labels become shares of the classes, as `tuning.training.losses` takes them.

Both act on grey levels, before the preprocessing, so a mixed film is normalised like any other.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def mix(
    films: Tensor, labels: Tensor, *, classes: int, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Grey levels [N, H, W] and class indices int64 [N] -> mixed grey levels [N, H, W] and shares float32 [N, classes].

    `mixup` and `cutmix` are the alphas of their Beta(alpha, alpha), 0 for off; if both are on, each call draws
    one of them. Each film is mixed with one of the batch (sometimes itself), in a share of its own. The random
    generator is numpy's, on the CPU, so that all devices mix alike.
    """
    shares = functional.one_hot(labels, classes).float()
    if not (mixup or cutmix):
        return films, shares
    partner = torch.from_numpy(rng.permutation(len(films))).to(films.device)
    cuts = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cuts else mixup
    kept = torch.from_numpy(rng.beta(alpha, alpha, len(films)).astype(np.float32)).to(films.device)
    if cuts:
        centre = torch.from_numpy(rng.random((len(films), 2), dtype=np.float32)).to(films.device)
        films, kept = _cut(films, films[partner], kept, centre)
    else:
        films = torch.lerp(films[partner].float(), films.float(), kept[:, None, None])
    return films, torch.lerp(shares[partner], shares, kept[:, None])


def _cut(films: Tensor, others: Tensor, kept: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """A box, 1 - kept of each film's area, comes from the other film (Yun et al. 2019, sec. 3.2).

    The box may reach beyond the edge; the share returned is that of the pixels which are the film's own.
    """
    half = (1 - kept).sqrt() / 2
    inside = []
    for axis, length in enumerate(films.shape[1:]):
        place = (torch.arange(length, device=films.device) + 0.5) / length
        inside.append((place - centre[:, axis, None]).abs() < half[:, None])
    box = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(box, others, films), 1 - box.float().mean(dim=(1, 2))
