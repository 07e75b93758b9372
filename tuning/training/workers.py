"""Several processes that train one network together: each takes its share of every step's films.

Knows no ray: whoever starts the processes connects them by `torch.distributed` (Ray Train does, with nccl on GPUs and
gloo on CPUs) and gives each its `Workers`. Gradients are added up by hand, in one message per step. Torch's
DistributedDataParallel was refused: it averages over workers as if all had equally many films of the same importance,
while this gives the gradient that a single worker would have from all of the step's films.

Batch normalisation uses each worker's own films on CPUs, and all of them on GPUs (SyncBatchNorm). Worker 0 evaluates,
and its network is the one that is kept: on CPUs its batch statistics are those of its own films.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from tuning.training.schedule import Indices


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The rank of this process and the number of processes. A single one needs no `torch.distributed`."""

    rank: int = 0
    count: int = 1

    def share(self, films: Indices) -> Indices:
        """This worker's part of a step's films."""
        return films if self.count == 1 else np.array_split(films, self.count)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all workers."""
        if self.count == 1:
            return value
        whole = value.clone()
        torch.distributed.all_reduce(whole)
        return whole

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every worker the sum of all workers' gradients."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def of_the_first(self, value: Tensor) -> Tensor:
        """The first worker's tensor, on all workers; it must have the same shape and dtype on each."""
        if self.count > 1:
            torch.distributed.broadcast(value, src=0)
        return value

    def prepare(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as several workers train it; the names of its weights do not change."""
        if self.count == 1 or device.type != "cuda":
            return network
        # torch's own converter makes plain normalisation of timm's, which has an activation and a dropout of its own
        import timm.layers  # noqa: PLC0415 - two CPU seconds that only a group on GPUs needs

        synchronised: nn.Module = timm.layers.convert_sync_batchnorm(network)  # type: ignore[attr-defined, no-untyped-call]
        return synchronised


ALONE = Workers()
