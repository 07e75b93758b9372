"""Several processes that train one network together: each takes its share of every step's films.

Knows no ray: whoever starts the processes connects them by `torch.distributed` (Ray Train does, with nccl on GPUs and
gloo on CPUs) and gives each its `Workers`. Gradients are added up by hand, in one message per step. Torch's
DistributedDataParallel was refused: it averages over workers as if all had equally many films of the same importance,
while this gives the gradient that a single worker would have from all of the step's films.

All start from the first worker's weights, whatever each had computed or read. Batch normalisation uses each worker's
own films on CPUs, and all of them on GPUs (SyncBatchNorm). The first worker's network is the one that is kept: on CPUs
its batch statistics are those of its own films. All evaluate a part of the validation films, with those statistics.
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

    def part(self, count: int) -> tuple[int, int]:
        """This worker's part of `count` films in a row: the first of them, and the one after the last."""
        films = self.share(np.arange(count))
        return (int(films[0]), int(films[-1]) + 1) if len(films) else (0, 0)

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

    @torch.no_grad()
    def share_first(self, values: Sequence[Tensor]) -> None:
        """Give every worker the first one's values of these tensors, in place; a message for each kind of number."""
        if self.count == 1:
            return
        for dtype in sorted({value.dtype for value in values}, key=str):
            own = [value for value in values if value.dtype == dtype]
            flat = torch.cat([value.reshape(-1) for value in own])
            torch.distributed.broadcast(flat, src=0)
            for value, part in zip(own, torch.split(flat, [value.numel() for value in own]), strict=True):
                value.copy_(part.view_as(value))

    def prepare(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as several workers train it; the names of its weights do not change."""
        if self.count == 1 or device.type != "cuda":
            return network
        # torch's own converter makes plain normalisation of timm's, which has an activation and a dropout of its own
        import timm.layers  # noqa: PLC0415 - two CPU seconds that only a group on GPUs needs

        synchronised: nn.Module = timm.layers.convert_sync_batchnorm(network)  # type: ignore[attr-defined, no-untyped-call]
        return synchronised


ALONE = Workers()
