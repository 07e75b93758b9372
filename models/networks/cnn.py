"""A small convolutional network whose shape the search may choose.

A strided stem, then `depth` stages; each stage halves the film and doubles the channels. By default batch
normalisation and ReLU throughout: on a CPU they are what a step spends most of its time on, so there are no more of
them than convolutions.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.errors import InputError

Pooling = Literal["avg", "max", "both"]
Norm = Literal["batch", "group", "none"]
Downsample = Literal["stride", "max", "avg"]
KERNELS = (3, 5, 7)


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
    kernel: int = 3
    """Side of every convolution: 3, 5 or 7 pixels."""
    norm: str = "batch"
    """After each convolution: `batch` normalisation, `group` normalisation (Wu & He 2018: the same in training and
    scoring, and for batches of any size) or `none`."""
    downsample: str = "stride"
    """How a stage halves its film: by the `stride` of its first convolution, or by a `max` or `avg` pooling before it,
    which then sees every pixel."""
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
        if self.kernel not in KERNELS:
            raise InputError(f"cnn: kernel={self.kernel} is out of range; choose from {', '.join(map(str, KERNELS))}")
        for name, kind in (("pooling", Pooling), ("norm", Norm), ("downsample", Downsample)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"cnn: unknown {name} {getattr(self, name)!r}; choose from {', '.join(get_args(kind))}"
                )


def _convolution(inputs: int, outputs: int, *, norm: str, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    if norm == "none":
        # nothing rescales what comes out: the weights must keep its variance (He et al. 2015, eq. 10)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        return nn.Sequential(convolution)
    # at most 8 groups, as many as divide any number of channels
    normalise = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs)
    return nn.Sequential(convolution, normalise)


def _halving(downsample: str) -> nn.Module:
    """[N, C, H, W] -> [N, C, H / 2, W / 2], rounded up as a padded convolution of stride 2 does."""
    return nn.MaxPool2d(2, ceil_mode=True) if downsample == "max" else nn.AvgPool2d(2, ceil_mode=True)


class Block(nn.Module):
    """Two convolutions; with `residual`, a basic block (He et al. 2016, sec. 3.3) with a pooled shortcut.

    The shortcut averages before its 1x1 convolution (ResNet-D: He et al. 2019, sec. 4.2) instead of striding it. It
    sees every pixel, and keeps off a fault of oneDNN: the weight gradient of a strided 1x1 convolution of fewer than 16
    input channels in channels_last order writes past its buffer (uxlfoundation/oneDNN#6035; seen with torch 2.15).
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool, settings: CNNSettings) -> None:
        super().__init__()
        norm, kernel = settings.norm, settings.kernel
        pooled = halve and settings.downsample != "stride"
        self.body = nn.Sequential(
            *([_halving(settings.downsample)] if pooled else []),
            _convolution(inputs, outputs, norm=norm, kernel=kernel, stride=2 if halve and not pooled else 1),
            nn.ReLU(inplace=True),
            _convolution(outputs, outputs, norm=norm, kernel=kernel),
        )
        self.shortcut: nn.Module | None = None
        if settings.residual:
            pool = _halving("avg") if halve else nn.Identity()
            same = inputs == outputs
            self.shortcut = nn.Sequential(
                pool, nn.Identity() if same else _convolution(inputs, outputs, norm=norm, kernel=1)
            )
            if norm == "none":
                # the sum starts as the shortcut, or it would double in variance with each block (Zhang et al. 2019)
                nn.init.zeros_(self.body[-1][0].weight)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H, W], or half of H and W."""
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
        self.stem = nn.Sequential(
            _convolution(1, settings.width, norm=settings.norm, kernel=settings.kernel, stride=2), nn.ReLU(inplace=True)
        )
        stages: list[nn.Module] = []
        channels = settings.width
        for stage in range(settings.depth):
            outputs = settings.width * 2**stage
            for block in range(settings.blocks):
                stages.append(Block(channels, outputs, halve=block == 0, settings=settings))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.blocks = settings.blocks
        self.pooling = settings.pooling
        features = channels * (2 if settings.pooling == "both" else 1)
        hidden = [nn.Linear(features, settings.head), nn.ReLU(inplace=True)] if settings.head else []
        self.head = nn.Sequential(nn.Dropout(settings.dropout), *hidden, nn.Linear(settings.head or features, classes))

    def features(self, x: Tensor) -> Tensor:
        """The input of the last layer, [N, D]."""
        return self.pool(self.maps(x)[-1])

    def maps(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, from shallow to deep: [N, channels, H, W]."""
        maps = [self.stem(x)]
        for start in range(0, len(self.stages), self.blocks):
            maps.append(self.stages[start : start + self.blocks](maps[-1]))
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """The features of the last stage's output."""
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

    def groups(self) -> list[nn.Module]:
        """Its layers from shallow to deep: the stem, each stage, the head's hidden layer, the last layer."""
        stages: list[nn.Module] = [
            self.stages[start : start + self.blocks] for start in range(0, len(self.stages), self.blocks)
        ]
        return [self.stem, *stages, self.head[:-1], self.head[-1]]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.features(x))
