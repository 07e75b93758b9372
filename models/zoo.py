"""Name -> network. Three families of our own, and every timm backbone with one input channel.

`majority` and `mlp` are the baselines a search must beat: what knowing the prevalence gives, and what a network
without convolutions gives.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cnn import CNN, CNNSettings
from models.errors import InputError
from models.spec import ModelSpec

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class MajoritySettings:
    """Nothing to choose."""


class Majority(nn.Module):
    """Gives every film the prevalence of the training films. Has no gradient; `learn` takes the place of training."""

    log_prior: Tensor

    def __init__(self, settings: MajoritySettings, *, size: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("log_prior", torch.zeros(classes))

    def learn(self, labels: Tensor) -> None:
        """Take the prevalence of class indices int64 [N]; half a film more of each class keeps the logits finite."""
        counts = torch.bincount(labels, minlength=len(self.log_prior)).float() + 0.5
        self.log_prior.copy_((counts / counts.sum()).log())

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, S, S] -> the same logits [N, classes] for every film."""
        return self.log_prior.expand(x.shape[0], -1)


@dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """A perceptron on a shrunken film."""

    side: int = 64
    """The film is shrunk to this side first (never enlarged), in pixels."""
    layers: int = 2
    """Hidden layers."""
    width: int = 256
    """Units of each hidden layer."""
    dropout: float = 0.1
    """Share of each hidden layer dropped in training."""

    def __post_init__(self) -> None:
        for name, low, high in (("side", 4, 256), ("layers", 0, 8), ("width", 4, 8192)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"mlp: {name}={getattr(self, name)} is out of range; choose {low} to {high}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"mlp: dropout={self.dropout} is out of range; choose from 0 up to, not including, 1")


class MLP(nn.Module):
    """float32 [N, 1, S, S] -> logits [N, classes]."""

    def __init__(self, settings: MLPSettings, *, size: int, classes: int) -> None:
        super().__init__()
        self.side = min(settings.side, size)
        layers: list[nn.Module] = []
        inputs = self.side**2
        for _ in range(settings.layers):
            # layer rather than batch normalisation: no running statistics, the same in training and scoring
            layers += [nn.Linear(inputs, settings.width), nn.LayerNorm(settings.width), nn.ReLU(inplace=True)]
            layers.append(nn.Dropout(settings.dropout))
            inputs = settings.width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, [N, D]."""
        features: Tensor = self.layers[:-1](functional.adaptive_avg_pool2d(x, self.side).flatten(1))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features."""
        logits: Tensor = self.layers[-1](features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.features(x))


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """What may be chosen of a timm backbone beside its name."""

    drop_rate: float = 0.0
    """Dropout before the classes."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for the backbones that have it."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < 1:
                raise InputError(f"{name}={value} is out of range; choose from 0 up to, not including, 1")


class _Family(Protocol):
    def __call__(self, settings: Any, *, size: int, classes: int) -> nn.Module: ...


_FAMILIES: Final[dict[str, tuple[type, _Family]]] = {
    "majority": (MajoritySettings, Majority),
    "mlp": (MLPSettings, MLP),
    "cnn": (CNNSettings, CNN),
}


def known_models() -> list[str]:
    """Every name `build` takes: our families first, then timm's backbones."""
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    return [*_FAMILIES, *timm.list_models()]


def build(spec: ModelSpec) -> nn.Module:
    """The network of a specification, freshly initialised from torch's random generator: [N, 1, S, S] -> [N, C].

    Raises `InputError` for unknown names, unknown parameters and values out of range.
    """
    if spec.name in _FAMILIES:
        settings, family = _FAMILIES[spec.name]
        return family(
            _configure(settings, spec.name, spec.parameters), size=spec.preprocessing.size, classes=len(spec.classes)
        )
    return _backbone(spec)


def features(network: nn.Module, x: Tensor) -> Tensor:
    """What the classifier of a network sees of its input [N, 1, S, S]: [N, D] or [N, D, 1, 1]."""
    if isinstance(network, (CNN, MLP)):
        return network.features(x)
    found: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator]
    return found


def classify(network: nn.Module, found: Tensor) -> Tensor:
    """The logits [N, C] of `features`."""
    if isinstance(network, (CNN, MLP)):
        return network.classify(found)
    logits: Tensor = network.get_classifier()(found)  # type: ignore[operator]
    return logits


@torch.inference_mode()
def has_features(network: nn.Module, x: Tensor) -> bool:
    """Whether `classify` of `features` is the network itself, tried on an input [N, 1, S, S] in evaluation mode.

    It is not for `majority`, nor for the few timm backbones that do more between the two, or have two classifiers.
    """
    try:
        apart = classify(network, features(network, x))
    except (AttributeError, TypeError):
        return False
    return torch.allclose(apart, network(x), rtol=1e-4, atol=1e-5)


def _backbone(spec: ModelSpec) -> nn.Module:
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, known_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose {', '.join(_FAMILIES)} or a timm backbone"
        raise InputError(f"unknown model {spec.name!r}; {hint}")
    chosen: BackboneSettings = _configure(BackboneSettings, spec.name, spec.parameters)
    arguments: dict[str, Any] = {name: value for name, value in asdict(chosen).items() if value}
    pretrained = timm.get_pretrained_cfg(spec.name)
    if pretrained is not None and pretrained.fixed_input_size:
        arguments["img_size"] = spec.preprocessing.size
    try:
        network: nn.Module = timm.create_model(
            spec.name, pretrained=False, in_chans=1, num_classes=len(spec.classes), **arguments
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(
            f"timm cannot build {spec.name!r} with {arguments} for one input channel: {error}; choose another backbone"
        ) from error
    return network


def _configure(settings: type[Settings], model: str, parameters: Mapping[str, Any]) -> Settings:
    """The settings of a family from plain values; names and types must match."""
    known = {field.name: field.default for field in fields(settings)}  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known) or 'none'}"
            raise InputError(f"model {model!r} has no parameter {name!r}; {hint}")
        wanted = type(known[name])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (type(value) is wanted or (wanted is float and is_number)):
            raise InputError(f"model {model!r}: {name}={value!r} must be of type {wanted.__name__}")
        checked[name] = wanted(value)
    return settings(**checked)
