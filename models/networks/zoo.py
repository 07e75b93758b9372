"""Name -> network. Three families of our own, and every timm backbone with one input channel.

`majority` and `mlp` are the baselines a search must beat: what knowing the prevalence gives, and what a network
without convolutions gives.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import InputError
from models.messages import did_you_mean
from models.networks.cnn import CNN, CNNSettings
from models.networks.ensemble import Ensemble
from models.spec import ModelSpec, Normalise, Preprocessing

Settings = TypeVar("Settings")

STAGES: Final = 3
"""Last stages of a network that describe a film."""


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
        """The input of the last layer, [N, D]."""
        features: Tensor = self.layers[:-1](functional.adaptive_avg_pool2d(x, self.side).flatten(1))
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features."""
        logits: Tensor = self.layers[-1](features)
        return logits

    def groups(self) -> list[nn.Module]:
        """Its layers from shallow to deep: each hidden layer with its normalisation, the last layer."""
        hidden: list[nn.Module] = [self.layers[start : start + 4] for start in range(0, len(self.layers) - 1, 4)]
        return [*hidden, self.layers[-1]]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.features(x))


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """Settings of a timm backbone."""

    drop_rate: float = 0.0
    """Dropout before the classes."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for the backbones that have it."""
    same_padding: bool = False
    """Pad strided convolutions on the right and below only, as TensorFlow does, for weights that were trained so;
    MobileNet- and EfficientNet-like backbones have the choice. Measured with the weights of Keras for MobileNetV2 0.35,
    a logistic head on Kermany films, five patient splits: AUC 0.9970 on average with it, 0.9963 without."""

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is out of range; choose from 0 up to, not including, 1")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the zoo knows of a model by its name."""

    name: str
    size: int
    """Side in pixels of the films it was made for; most take others, too."""
    normalise: Normalise
    """Normalisation to give a network that starts from this model's pretrained weights."""
    classifier: str
    """Name of the module that gives the logits; empty for `majority`. In `cnn` and `mlp`, it is the last of those in
    the module of this name."""
    mean: tuple[float, ...] = (0.5,)
    """Of each colour, from 0 to 1: what was subtracted from the images its pretrained weights were trained on."""
    deviation: tuple[float, ...] = (0.5,)
    """Of each colour: what these images were then divided by."""


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


def entry(name: str) -> Entry:
    """What is known of a model by its name. Raises `InputError` for a name the zoo does not know."""
    if name in _FAMILIES:
        classifier = {"majority": "", "mlp": "layers", "cnn": "head"}[name]
        return Entry(name=name, size=Preprocessing.size, normalise=Preprocessing.normalise, classifier=classifier)
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    _check_backbone(name)
    known = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    classifier = known.classifier or ""
    return Entry(
        name=name,
        size=known.input_size[-1],
        # whatever the colours were scaled to, `models.networks.weights` scales the first convolution to grey from -1 to
        # 1
        normalise="symmetric",
        classifier=classifier if isinstance(classifier, str) else classifier[0],
        mean=tuple(known.mean),
        deviation=tuple(known.std),
    )


def build(spec: ModelSpec) -> nn.Module:
    """The network of a specification, freshly initialised from torch's random generator: [N, 1, S, S] -> [N, C].

    Raises `InputError` for unknown names, unknown parameters and values out of range.
    """
    if spec.members > 1:
        return Ensemble([build(replace(spec, members=1)) for _ in range(spec.members)])
    if spec.name in _FAMILIES:
        settings, family = _FAMILIES[spec.name]
        return family(
            _configure(settings, spec.name, spec.parameters), size=spec.preprocessing.size, classes=len(spec.classes)
        )
    return _backbone(spec)


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise `InputError` where `build` would for a model's parameters, without building it."""
    _configure(_FAMILIES[name][0] if name in _FAMILIES else BackboneSettings, name, parameters)


def features(network: nn.Module, x: Tensor) -> Tensor:
    """What a network computes from its input [N, 1, S, S] for its classifier: [N, D] or [N, D, 1, 1].

    Of an ensemble those of all its members, side by side.
    """
    if isinstance(network, Ensemble):
        return torch.cat([features(member, x) for member in network.members], dim=1)
    if isinstance(network, (CNN, MLP)):
        return network.features(x)
    pooled: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator]
    return pooled


def described(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """`features` of an input [N, 1, S, S], and what the layers before them saw, float32 [N, D].

    The latter is the mean and the deviation over the film of each channel of the last `STAGES` stages. The features
    themselves have forgotten what does not tell disease from health, and so much of what tells a child from an adult.
    Networks without stages (`mlp`, some timm backbones) are described by their features. An ensemble is described by
    its first member, see `describing`.
    """
    if isinstance(network, Ensemble):
        first, seen = described(describing(network), x)
        return torch.cat([first, *(features(member, x) for member in network.members[1:])], dim=1), seen
    if isinstance(network, CNN):
        maps = network.maps(x)
        computed = network.pool(maps[-1])
    elif hasattr(network, "forward_intermediates"):
        last, maps = network.forward_intermediates(x)  # type: ignore[operator]
        computed = network.forward_head(last, pre_logits=True)  # type: ignore[operator]
    else:
        computed = features(network, x)
        return computed, computed.flatten(1).float()
    return computed, torch.cat([part for stage in maps[-STAGES:] for part in _moments(stage)], dim=1)


def describing(network: nn.Module) -> nn.Module:
    """The network that alone gives what `described` says of a film: of an ensemble, the first member."""
    return network.members[0] if isinstance(network, Ensemble) else network


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of maps [N, C, H, W] over the film, float32 [N, C] each."""
    places = maps.flatten(2).float()
    mean = places.mean(dim=2)
    return mean, (places - mean[:, :, None]).square().mean(dim=2).sqrt()


def classify(network: nn.Module, features: Tensor) -> Tensor:
    """The logits [N, C] of `features`."""
    if isinstance(network, Ensemble):
        parts = features.chunk(len(network.members), dim=1)
        each = [classify(member, part) for member, part in zip(network.members, parts, strict=True)]
        return torch.stack(each).mean(dim=0)
    if isinstance(network, (CNN, MLP)):
        return network.classify(features)
    logits: Tensor = network.get_classifier()(features)  # type: ignore[operator]
    return logits


@torch.inference_mode()
def has_features(network: nn.Module, x: Tensor) -> bool:
    """Whether `classify` of what `described` gives is the network itself, tried on an input [N, 1, S, S].

    The network is in evaluation mode.

    It is not for `majority`, nor for the few timm backbones that do more between the two, or have two classifiers.
    """
    try:
        apart = classify(network, described(network, x)[0])
    except (AttributeError, TypeError, NotImplementedError):
        return False
    return torch.allclose(apart, network(x), rtol=1e-4, atol=1e-5)


def layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """The weights from the input to the classifier, each once; the last group is the classifier alone.

    A group is a stage of a convolutional network, a block of a transformer, a hidden layer of a perceptron. Groups of a
    timm backbone are those of its own `group_matcher`, or its top-level modules where it has none; normalisation that
    stands alone joins the group before it. `majority` has no groups.
    """
    if isinstance(network, (CNN, MLP)):
        groups = [list(module.parameters()) for module in network.groups()]
        return [group for group in groups if group]
    last = _classifier(network)
    of_classifier = {id(parameter) for parameter in last}
    found: list[list[nn.Parameter]] = []
    for group in _timm_groups(network):
        rest = [parameter for parameter in group if id(parameter) not in of_classifier]
        if found and all(parameter.ndim <= 1 for parameter in rest):
            found[-1] += rest
        elif rest:
            found.append(rest)
    return [*found, last] if last else found


def _classifier(network: nn.Module) -> list[nn.Parameter]:
    """The weights of what gives the logits; of every such module where there are several."""
    if not hasattr(network, "get_classifier"):
        return []
    modules = network.get_classifier()  # type: ignore[operator]
    modules = modules if isinstance(modules, (tuple, list)) else [modules]
    return [parameter for module in modules for parameter in module.parameters()]


def _timm_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """Every weight of a backbone in groups, the classifier's somewhere among them."""
    parameters = dict(network.named_parameters())
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters  # noqa: PLC0415 - two CPU seconds that only its backbones need

        named = group_parameters(network, network.group_matcher(coarse=True))  # type: ignore[operator]
        if sorted(chain.from_iterable(named.values())) == sorted(parameters):
            return [[parameters[name] for name in named[depth]] for depth in sorted(named)]
    own = [parameter for name, parameter in parameters.items() if "." not in name]
    children = [
        [p for n, p in parameters.items() if n.startswith(f"{child}.")] for child, _ in network.named_children()
    ]
    return [group for group in (own, *children) if group]


def _check_backbone(name: str) -> None:
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    if not timm.is_model(name):
        hint = did_you_mean(name, known_models(), most=3) or f"choose {', '.join(_FAMILIES)} or a timm backbone"
        raise InputError(f"unknown model {name!r}; {hint}")


def _backbone(spec: ModelSpec) -> nn.Module:
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    _check_backbone(spec.name)
    chosen: BackboneSettings = _configure(BackboneSettings, spec.name, spec.parameters)
    arguments: dict[str, Any] = {name: value for name, value in asdict(chosen).items() if value}
    if arguments.pop("same_padding", False):
        arguments["pad_type"] = "same"
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
            hint = did_you_mean(name, known) or f"it takes: {', '.join(known) or 'none'}"
            raise InputError(f"model {model!r} has no parameter {name!r}; {hint}")
        wanted = type(known[name])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (type(value) is wanted or (wanted is float and is_number)):
            raise InputError(f"model {model!r}: {name}={value!r} must be of type {wanted.__name__}")
        checked[name] = wanted(value)
    return settings(**checked)
