"""Pretrained weights, from the bytes of a file into a network of one channel.

Weights trained on colours (r, g, b) take grey films u, from 0 to 1, as r = g = b = u. Their first convolution saw
x_c = (u - m_c) / s_c; the network's own sees v = (u - a) / b, by its normalisation. As u = a + b v, the convolution
sum_c w_c x_c is (b sum_c w_c / s_c) v + sum_c w_c (a - m_c) / s_c: one channel, and a constant that joins the
convolution's bias or the running mean of the BatchNorm behind it. So grey films give the activations that they gave
repeated over three channels. Exactly so where the colours were scaled alike and as the network's films are
("symmetric" to `symmetric`); otherwise all but the outermost pixels of a convolution that pads with zeros, because zero
stands for another grey. For films normalised one by one (`film`), a and b are those of a typical chest film.

A file's BatchNorm variances must be meant for the network's epsilon (1e-5 for all but timm's `tf_` models): those of
Keras for 1e-3 need 0.00099 added when they are converted.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import InputError, RayscanError
from models.messages import first_line
from models.networks.tensor_names import FAMILIARITY
from models.networks.zoo import entry, layer_groups
from models.spec import ModelSpec, Normalise

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Of each colour, from 0 to 1: what is subtracted, and what it is then divided by."""

SCALES: Final[dict[str, Scale]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
}
"""How the colours of the images were scaled that weights were trained on."""

_GREY: Final[dict[Normalise, tuple[float, float]]] = {"unit": (0.0, 1.0), "symmetric": (0.5, 0.5), "film": (0.48, 0.22)}
"""Of each normalisation of `models.spec`: what is taken off a grey from 0 to 1, and what it is divided by. For `film`:
mean and deviation of 201 Kermany films, on average."""

_COUNTER: Final = "num_batches_tracked"
_NAMED: Final = 3
"""Tensors that an error names of each kind."""
_MOBILENET_V2_BLOCKS: Final = (1, 2, 3, 4, 3, 3, 1)
"""Of each stage (Sandler et al. 2018, table 2)."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was loaded from a file into a network."""

    classifier: bool
    """Whether the classifier was loaded, too: the file had one of as many classes."""
    folded: bool
    """Whether its BatchNorm does nothing but add a bias, since what it did is folded into the convolutions. As it is
    it serves in evaluation mode only; `unfold_batch_norm` makes it fit to be trained on."""


def read_weights(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `.pth` file of nothing but tensors; floating ones as float32.

    `name` is what messages call the file. Raises `InputError` for anything else; nothing in it is ever executed.
    """
    found = _read_torch(data, name) if data[:2] in {b"PK", b"\x80\x02"} else _read_safetensors(data, name)
    return {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in found.items()
        if not key.startswith(FAMILIARITY)
    }


def hub_weights(model: str) -> dict[str, Tensor]:
    """The ImageNet weights that timm publishes for a backbone, from its cache on this machine or from the hub.

    Raises `InputError` for a model without any, `RayscanError` when the hub cannot be reached.
    """
    entry(model)  # refuses names the zoo does not know
    import timm  # noqa: PLC0415 - two CPU seconds that only its own backbones need

    known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if known is None or not known.hf_hub_id:
        raise InputError(f"there are no published weights of {model!r}; give a file of weights, or another backbone")
    try:
        found: dict[str, Tensor] = timm.models.load_state_dict_from_hf(known.hf_hub_id, "model.safetensors")
    except OSError as error:
        raise RayscanError(
            f"the weights of {model} cannot be fetched ({first_line(error)}); where there is a network fetch"
            f" huggingface.co/{known.hf_hub_id}: give its file instead"
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def load_pretrained(
    network: nn.Module, spec: ModelSpec, weights: Mapping[str, Tensor], *, name: str, scale: str | None = None
) -> Loaded:
    """Give a network, built from `spec`, the tensors of `read_weights` or `hub_weights`; in place.

    Names are the network's own, or torchvision's for MobileNetV2. The first convolution may have three channels, then
    `scale` says how they were scaled, one of `SCALES`; None takes what `models.networks.zoo.entry` says of the
    backbone. A classifier of other classes is left out, and the network keeps its fresh one. `name` is what messages
    call the file. Raises `InputError` naming the tensors that do not fit; the network is then as it was.
    """
    if scale is not None and scale not in SCALES:
        raise InputError(f"unknown scale {scale!r} of the colours; choose from {', '.join(SCALES)}")
    have = network.state_dict()
    found = {key: value for key, value in _timm_names(network, weights).items() if not key.endswith(_COUNTER)}
    _take_grey(network, spec, found, SCALES[scale] if scale else (entry(spec.name).mean, entry(spec.name).deviation))
    _resize_positions(network, found)
    classifier = _classifier_names(network)
    fits = all(key in found and found[key].shape == have[key].shape for key in classifier)
    if not fits:
        found = {key: value for key, value in found.items() if key not in classifier}
    wanted = {key for key in have if not key.endswith(_COUNTER) and (fits or key not in classifier)}
    misfits = {
        "missing": sorted(wanted - set(found)),
        "unexpected": sorted(set(found) - wanted),
        "of another shape": [
            f"{key} {list(found[key].shape)} for {list(have[key].shape)}"
            for key in sorted(wanted & set(found))
            if found[key].shape != have[key].shape
        ],
    }
    if any(misfits.values()):
        what = "; ".join(f"{kind}: {_some(names)}" for kind, names in misfits.items() if names)
        raise InputError(f"{name}: does not fit {spec.name}: {what}; choose the backbone it is of, or its own weights")
    network.load_state_dict(found, strict=False)
    return Loaded(classifier=fits and bool(classifier), folded=_is_folded(network))


@torch.no_grad()
def unfold_batch_norm(network: nn.Module, inputs: Tensor) -> None:
    """Estimate the statistics of every BatchNorm on inputs [N, 1, S, S], a few dozen at least, and make up for them.

    In evaluation mode the network computes what it did before; in training mode, what it does in evaluation mode.
    """
    modules = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    seen: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        variance, mean = torch.var_mean(args[0], dim=[d for d in range(args[0].ndim) if d != 1], correction=0)
        seen[module] = mean, variance

    handles = [module.register_forward_pre_hook(look) for module in modules]
    training = network.training
    try:
        network.eval()(inputs)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    for module, (mean, variance) in seen.items():
        assert module.running_mean is not None
        assert module.running_var is not None
        slope = module.weight / (module.running_var + module.eps).sqrt()
        module.bias.add_((mean - module.running_mean) * slope)
        module.weight.copy_(slope * (variance + module.eps).sqrt())
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits that stand for the names, shapes and values of tensors."""
    digest = blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{name}: not a file of weights; give a safetensors or a .pth file") from error


def _read_torch(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's reader stumble in ways without number
        raise InputError(
            f"{name}: damaged, or holds more than tensors, which is never executed; give its state dict as safetensors"
        ) from error
    for inner in ("state_dict", "model"):
        value = value[inner] if isinstance(value, dict) and isinstance(value.get(inner), dict) else value
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise InputError(f"{name}: holds no state dict; give a safetensors or a .pth file of named tensors")
    return {str(key): tensor for key, tensor in value.items()}


def _timm_names(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in timm's names where they are torchvision's of a MobileNetV2."""
    if not hasattr(network, "conv_stem") or "features.0.0.weight" not in weights:
        return dict(weights)
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    last = ("features.1.conv.0.0", "features.1.conv.0.1", "features.1.conv.1", "features.1.conv.2")
    names |= {old: f"blocks.0.0.{new}" for old, new in zip(last, ("conv_dw", "bn1", "conv_pw", "bn2"), strict=True)}
    old_parts = ("0.0", "0.1", "1.0", "1.1", "2", "3")
    new_parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    number = 1
    for stage, blocks in enumerate(_MOBILENET_V2_BLOCKS[1:], start=1):
        for block in range(blocks):
            number += 1
            for old, new in zip(old_parts, new_parts, strict=True):
                names[f"features.{number}.conv.{old}"] = f"blocks.{stage}.{block}.{new}"
    names |= {f"features.{number + 1}.0": "conv_head", f"features.{number + 1}.1": "bn2"}
    renamed = {}
    for key, value in weights.items():
        module, _, tensor = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{tensor}"] = value
    return renamed


def _take_grey(network: nn.Module, spec: ModelSpec, found: dict[str, Tensor], scale: Scale) -> None:
    """Make the first convolution of a backbone one of grey films, as the module's docstring derives it."""
    first: Any = getattr(network, "pretrained_cfg", None) or {}
    first = first.get("first_conv")
    colours = found.get(f"{first}.weight")
    if not isinstance(first, str) or colours is None or colours.ndim != 4 or colours.shape[1] != 3:
        return
    mean, deviation = (torch.tensor(values * (3 // len(values))).view(1, 3, 1, 1) for values in scale)
    taken_off, divisor = _GREY[spec.preprocessing.normalise]
    found[f"{first}.weight"] = divisor * (colours / deviation).sum(dim=1, keepdim=True)
    constant = (colours * (taken_off - mean) / deviation).sum(dim=(1, 2, 3))
    if not constant.any():
        return
    if f"{first}.bias" in found:
        found[f"{first}.bias"] = found[f"{first}.bias"] + constant
        return
    mean_of = _behind(network, first, channels=len(constant))
    if mean_of not in found:
        raise InputError(
            f"the first convolution of {spec.name} has neither bias nor BatchNorm to take the colours' mean;"
            " give weights of films scaled from -1 to 1"
        )
    found[mean_of] = found[mean_of] - constant


def _behind(network: nn.Module, first: str, *, channels: int) -> str:
    """Name of the running mean of the BatchNorm behind a convolution; empty without one."""
    modules = list(network.named_modules())
    names = [name for name, _ in modules]
    for name, module in modules[names.index(first) + 1 :]:
        if isinstance(module, _BatchNorm):
            return f"{name}.running_mean" if module.num_features == channels else ""
    return ""


def _resize_positions(network: nn.Module, found: dict[str, Tensor]) -> None:
    """Interpolate the position embeddings of a transformer made for films of another size."""
    have = getattr(network, "pos_embed", None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if "pos_embed" in found and have is not None and grid is not None and found["pos_embed"].shape != have.shape:
        from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: PLC0415 - as for all of timm

        found["pos_embed"] = resample_abs_pos_embed(
            found["pos_embed"], new_size=list(grid), num_prefix_tokens=getattr(network, "num_prefix_tokens", 1)
        )


def _classifier_names(network: nn.Module) -> set[str]:
    groups = layer_groups(network)
    last = {id(parameter) for parameter in groups[-1]} if groups else set()
    return {name for name, parameter in network.named_parameters() if id(parameter) in last}


def _is_folded(network: nn.Module) -> bool:
    """Whether every BatchNorm only adds its bias, but for the first, which may have taken a constant."""
    modules = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return len(modules) > 1 and all(_only_adds(module) for module in modules[1:])


def _only_adds(module: _BatchNorm) -> bool:
    assert module.running_mean is not None
    assert module.running_var is not None
    slope = module.weight / (module.running_var + module.eps).sqrt()
    return not module.running_mean.any() and bool((slope - 1).abs().max() < 1e-4)


def _some(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + rest
