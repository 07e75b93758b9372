"""Several networks of one architecture as one: the mean of their logits.

Each has the same films to say something about and errors of its own, of which the mean has fewer (Lakshminarayanan et
al. 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles", sec. 2.4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """[N, 1, S, S] -> logits [N, C]."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the members' logits."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)
