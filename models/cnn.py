"""A small convolutional network whose shape the search may choose.

A strided stem, then `depth` stages; each stage halves the film and doubles the channels. Batch normalisation and ReLU
throughout: on a CPU they are what a step spends most of its time on, so there are no more of them than convolutions.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.errors import InputError

Pooling = Literal["avg", "max", "both"]


@dataclass(frozen=True, kw_only=True)
class CNNSettings:
    """Shape of the network. The defaults have 0.7 M weights."""

    depth: int = 4
    """Stages; the film must be at least 2 ** (depth + 1) pixels wide."""
    width: int = 24
    """Channels of the first stage; each next stage has twice as many."""
    blocks: int = 1
    """Blocks of two convolutions in each stage."""
    residual: bool = True
    """Add each block's input to its output."""
    pooling: str = "avg"
    """How the last feature maps become a vector: their mean (`avg`), maximum (`max`) or `both`."""
    dropout: float = 0.1
    """Share of that vector dropped in training."""
    head: int = 0
    """Units of a hidden layer before the classes; 0 for none."""

    def __post_init__(self) -> None:
        for name, low, high in (("depth", 1, 7), ("width", 4, 256), ("blocks", 1, 8), ("head", 0, 4096)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"cnn: {name}={getattr(self, name)} is out of range; choose {low} to {high}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"cnn: dropout={self.dropout} is out of range; choose from 0 up to, not including, 1")
        if self.pooling not in get_args(Pooling):
            raise InputError(f"cnn: unknown pooling {self.pooling!r}; choose from {', '.join(get_args(Pooling))}")


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Block(nn.Module):
    """Two convolutions; with `residual`, a basic block (He et al. 2016, sec. 3.3) with a pooled shortcut.

    The shortcut averages before its 1x1 convolution (ResNet-D: He et al. 2019, sec. 4.2) instead of striding it. It
    sees every pixel, and keeps off a fault of oneDNN: the weight gradient of a strided 1x1 convolution of fewer than 16
    input channels in channels_last order writes past its buffer (uxlfoundation/oneDNN#6035; seen with torch 2.15).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, residual: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride=stride), nn.ReLU(inplace=True), _convolution(outputs, outputs)
        )
        self.shortcut: nn.Module | None = None
        if residual:
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            same = inputs == outputs
            self.shortcut = nn.Sequential(pool, nn.Identity() if same else _convolution(inputs, outputs, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = self.body(x)
        return torch.relu(y if self.shortcut is None else y + self.shortcut(x))


def smallest_film(depth: int) -> int:
    """Side in pixels below which a film has nothing left after this many stages: the stem and each stage halve it."""
    return int(2 ** (depth + 1))


class CNN(nn.Module):
    """float32 [N, 1, S, S] -> logits [N, classes]."""

    def __init__(self, settings: CNNSettings, *, size: int, classes: int) -> None:
        super().__init__()
        smallest = smallest_film(settings.depth)
        if size < smallest:
            raise InputError(
                f"cnn: depth={settings.depth} needs films of at least {smallest} pixels, these have {size};"
                " lower the depth or raise the size"
            )
        self.stem = nn.Sequential(_convolution(1, settings.width, stride=2), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        channels = settings.width
        for stage in range(settings.depth):
            outputs = settings.width * 2**stage
            for block in range(settings.blocks):
                stride = 2 if block == 0 else 1
                stages.append(Block(channels, outputs, stride=stride, residual=settings.residual))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.pooling = settings.pooling
        features = channels * (2 if settings.pooling == "both" else 1)
        hidden = [nn.Linear(features, settings.head), nn.ReLU(inplace=True)] if settings.head else []
        self.head = nn.Sequential(nn.Dropout(settings.dropout), *hidden, nn.Linear(settings.head or features, classes))

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, [N, D]."""
        maps = self.stages(self.stem(x))
        pooled = []
        if self.pooling in {"avg", "both"}:
            pooled.append(maps.mean(dim=(2, 3)))
        if self.pooling in {"max", "both"}:
            pooled.append(maps.amax(dim=(2, 3)))
        features: Tensor = self.head[:-1](torch.cat(pooled, dim=1))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features."""
        logits: Tensor = self.head[-1](features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.features(x))
