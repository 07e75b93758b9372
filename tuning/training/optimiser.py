"""Which weights learn, how fast, and the moving average of them."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from models.errors import InputError
from tuning.training.settings import TrainSettings

Groups = Sequence[Sequence[nn.Parameter]]
"""Groups of layers, from the input to the classifier, as `models.networks.zoo.layer_groups` returns them."""

SHARE: Final = "rate_share"
"""Key, in an optimiser's parameter group, of its share of the learning rate."""


def make_optimiser(groups: Groups, settings: TrainSettings) -> torch.optim.Optimizer:
    """An optimiser of all weights that will ever learn; their groups carry their share of the learning rate.

    Biases and normalisation have no weight decay, as it would only distort them.
    """
    rate: Any = {"lr": settings.learning_rate}
    parts: list[dict[str, Any]] = []
    for depth, group in enumerate(groups[settings.frozen_groups :], start=settings.frozen_groups):
        share = settings.rate_decay ** (len(groups) - 1 - depth)
        for decay, members in (
            (settings.weight_decay, [parameter for parameter in group if parameter.ndim > 1]),
            (0.0, [parameter for parameter in group if parameter.ndim <= 1]),
        ):
            if members:
                parts.append({"params": members, "weight_decay": decay, SHARE: share})
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parts, **rate, momentum=0.9, nesterov=True)
    if settings.optimiser == "rmsprop":
        return torch.optim.RMSprop(parts, **rate, momentum=0.9)
    if settings.optimiser == "nadam":
        return torch.optim.NAdam(parts, **rate, decoupled_weight_decay=True)
    return torch.optim.AdamW(parts, **rate)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group[SHARE]


def freeze(groups: Groups, settings: TrainSettings, epoch: int) -> None:
    """Unfreeze the layers that learn in this epoch (from 1), and freeze all others.

    Raises `InputError` if none would learn.
    """
    if settings.frozen_groups >= len(groups):
        raise InputError(
            f"frozen_groups={settings.frozen_groups} leaves nothing to learn: this network has {len(groups)} groups"
            f" of layers; choose {len(groups) - 1} or less"
        )
    shallowest = settings.frozen_groups
    if settings.unfreeze_every:
        shallowest = max(shallowest, len(groups) - 1 - (epoch - 1) // settings.unfreeze_every)
    for depth, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(depth >= shallowest)


def train_mode(network: nn.Module) -> None:
    """Training mode, but the batch normalisation of frozen layers keeps its statistics.

    Statistics of the new films with weights learned on the old ones would fit neither network.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, _NormBase):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


class Average:
    """Exponential moving average of a network's weights (Polyak averaging), as a network of its own.

    Running statistics of batch normalisation are averaged as the weights are. Their average over recent weights is
    closer to the statistics under the averaged weights than those of the last batch.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the weights after a step; the first steps count more, as the initial weights are random."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = network.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(current[name], 1 - decay)
            else:
                mean.copy_(current[name])


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], network: nn.Module, classifier: Sequence[nn.Parameter]) -> None:
    """Copy a state into a network; parameters of the classifier that it lacks, or has in another shape, stay.

    Raises `InputError` where the weights are not those of this network.
    """
    own = network.state_dict(keep_vars=True)
    heads = {id(parameter) for parameter in classifier}
    free = {name for name, value in own.items() if id(value) in heads}
    modules = {name.rpartition(".")[0] for name in free}
    strange = [name for name in weights if name not in own and name.rpartition(".")[0] not in modules]
    # torch counts batches only to average without momentum, which no network of the zoo does
    missing = [
        name for name in own if name not in weights and name not in free and not name.endswith("num_batches_tracked")
    ]
    shaped = [
        name for name, value in own.items()
        if name in weights and name not in free and weights[name].shape != value.shape
    ]  # fmt: skip
    for names, fault in ((missing, "lack"), (strange, "have an unknown"), (shaped, "have another shape of")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"these weights {fault} {names[0]}{more}; give weights of the same architecture")
    for name, value in own.items():
        if name in weights and weights[name].shape == value.shape:
            value.copy_(weights[name])
