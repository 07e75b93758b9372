"""The whole state of a training after an epoch, as one safetensors file; nothing in it is ever unpickled.

Tensors (weights, their average, the best epoch's, the optimiser's, random generators) stand in the file's body,
numbers and names as JSON in its header. A training that goes on from it ends with the same weights, bit for bit, as one
that was never interrupted, on a CPU of the same machine and number of threads; of a GPU `tuning.training.loop.fit` says
what holds.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models.errors import InputError

FORMAT: Final = 2
"""1 kept the generator of augmentation on the training's own device."""
_HEADER: Final = "rayscan_checkpoint"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors on the CPU by name, and plain JSON values."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The last finished epoch, counted from 1."""
        return int(self.facts["epoch"])

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        header = {_HEADER: json.dumps({"format": FORMAT, **self.facts}, allow_nan=False)}
        data: bytes = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in self.tensors.items()}, metadata=header
        )
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Checkpoint":
        """The inverse of `to_bytes`. Raises `InputError` for anything else."""
        try:
            tensors = safetensors.torch.load(data)
            # the file begins with the length of its JSON header, which `load` has just checked
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            facts = json.loads(header["__metadata__"][_HEADER])
            known = facts.pop("format") == FORMAT
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"this is no checkpoint of a training: {error}; start the training anew") from error
        if not known:
            raise InputError("this checkpoint is of another version of rayscan; start the training anew")
        return cls(tensors=tensors, facts=facts)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name/`, with that prefix removed."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def require(self, wanted: Mapping[str, Any]) -> None:
        """Raise `InputError` unless the checkpoint has these facts; without them it is of another training."""
        for name, value in json.loads(json.dumps(wanted)).items():
            recorded = self.facts.get(name)
            if recorded == value:
                continue
            if isinstance(value, dict) and isinstance(recorded, dict):
                differing = [key for key in {**recorded, **value} if recorded.get(key) != value.get(key)]
                name = f"{name} ({', '.join(differing)})"  # noqa: PLW2901 - names what differs
            raise InputError(f"this checkpoint is of a training with another {name}; go on with that, or start anew")


def under(name: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Copies on the CPU, named `name/...`, as `Checkpoint.part` reads them."""
    for key, value in tensors.items():
        yield f"{name}/{key}", value.detach().cpu().clone()


@torch.no_grad()
def restore_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a whole state in place, which keeps the network's memory layout: a file does not store it."""
    for name, value in network.state_dict().items():
        value.copy_(state[name])


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state for each weight, named by the weight's number and the name of the value."""
    return {
        f"{number}/{name}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for number, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


@torch.no_grad()
def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_state`, for an optimiser made as that one was."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for key, value in state.items():
        number, _, name = key.partition("/")
        weight = weights[int(number)]
        # a tensor of the weight's shape has the weight's memory layout, which a file does not store
        like = weight if value.shape == weight.shape and value.ndim else value
        optimiser.state[weight][name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
