"""What training minimises. All take logits float32 [N, C] and class indices int64 [N] and give a scalar."""

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights float32 [classes] that give each class the same share of the loss: N / (classes * films of the class)."""
    counts = torch.bincount(labels, minlength=classes).float().clamp_min(1)
    return counts.sum() / (classes * counts)


def cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, each film weighted by its class; label smoothing as in Szegedy et al. 2016, sec. 7."""
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)


def focal(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5): films the network is already sure of count less. Gamma 0 is cross entropy.

    The weighted films are averaged by the sum of their weights, as torch's cross entropy does.
    """
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    sure = torch.softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    importance = torch.ones_like(each) if weights is None else weights[labels]
    return (importance * (1 - sure) ** gamma * each).sum() / importance.sum()
