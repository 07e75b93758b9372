"""The losses that training minimises. All take logits float32 [N, C] and labels, and return a scalar.

Labels are class indices int64 [N], or shares of the classes float32 [N, C] that sum to 1, as mixing films produces.
Shares of 0 and 1 give the same loss as indices. Each film is weighted by its `importance`, and the sum is divided by
the sum of these weights, as in torch's cross entropy for indices (for shares, torch divides by the number of films). So
the loss of a batch is the mean of its parts' losses, weighted by their importances.
"""

import torch
from torch import Tensor
from torch.nn import functional


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights float32 [classes] that give each class the same share of the loss: N / (classes * films of the class)."""
    counts = torch.bincount(labels, minlength=classes).float().clamp_min(1)
    return counts.sum() / (classes * counts)


def importance(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weight of each film: float32 [N], that of its class, or of its classes in proportion to their shares."""
    if weights is None:
        return torch.ones(len(labels), device=labels.device)
    return weights[labels] if labels.ndim == 1 else labels @ weights


def cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, each film weighted by its class; label smoothing as in Szegedy et al. 2016, sec. 7."""
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    total = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
    return total / importance(labels, weights).sum()


def focal(
    logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5): films the network is already sure of count less. Gamma 0 is cross entropy.

    For a mixed film, the probability that counts is that of its classes, weighted by their shares.
    """
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    probabilities = torch.softmax(logits, dim=1)
    if labels.ndim == 1:
        sure = probabilities.gather(1, labels[:, None]).squeeze(1)
    else:
        sure = (probabilities * labels).sum(dim=1)
    counts = importance(labels, weights)
    return (counts * (1 - sure) ** gamma * each).sum() / counts.sum()
