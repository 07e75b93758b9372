"""Pretrained weights: what a network computes with them, and what is said of those that do not fit."""

import copy
import io
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.errors import InputError, RayscanError
from models.networks.weights import hub_weights, load_pretrained, read_weights, unfold_batch_norm, weights_hash
from models.networks.zoo import build
from models.spec import ModelSpec, Normalise, Preprocessing, Scalar
from tests.models.synthetic import small_spec

REAL = os.environ.get("RAYSCAN_REAL_WEIGHTS")
KERAS = "mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
FOLDED = "mobilenet_v2_1.0_imagenet_coral_ptq_dequant_foldedbn.safetensors"


def spec_of(name: str, size: int = 32, normalise: Normalise = "symmetric", **parameters: Scalar) -> ModelSpec:
    preprocessing = Preprocessing(size=size, normalise=normalise)
    return ModelSpec(name=name, parameters=parameters, preprocessing=preprocessing)


@torch.no_grad()
def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """As after training: statistics and biases are not what they start as."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
    return network.eval()


def colour(name: str, size: int = 32, classes: int = 5) -> nn.Module:
    """A trained backbone of three channels."""
    sized = {"img_size": size} if name.startswith("vit") else {}
    return trained(timm.create_model(name, num_classes=classes, **sized))


def greys(size: int = 32, count: int = 2) -> Tensor:
    """Grey levels from 0 to 1, [N, 1, S, S]."""
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def scaled(grey: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """Grey repeated over three channels, as the colours of pretraining were scaled."""
    return (grey.expand(-1, 3, -1, -1) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SYMMETRIC = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def as_file(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.clone().contiguous() for name, value in tensors.items()})


@pytest.mark.parametrize(
    "name", ["resnet10t", "densenet121", "mobilenetv2_035", "convnext_atto", "vit_tiny_patch16_224", "legacy_xception"]
)
@torch.inference_mode()
def test_grey_films_give_the_activations_they_gave_in_three_channels(name: str) -> None:
    size = 64 if name == "legacy_xception" else 32
    original = colour(name, size)
    network = build(spec_of(name, size)).eval()
    weights = read_weights(as_file(original.state_dict()), "it")
    loaded = load_pretrained(network, spec_of(name, size), weights, name="it", scale="symmetric")
    assert not loaded.classifier
    grey = greys(size)
    expected = original.forward_features(scaled(grey, *SYMMETRIC))  # type: ignore[operator]
    found = network.forward_features(grey * 2 - 1)  # type: ignore[operator]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalise", ["symmetric", "unit", "film"])
@torch.inference_mode()
def test_colours_of_imagenet_become_any_normalisation(normalise: Normalise) -> None:
    """Patches are not padded, so a transformer computes the very same."""
    original, spec = colour("vit_tiny_patch16_224"), spec_of("vit_tiny_patch16_224", normalise=normalise)
    network = build(spec).eval()
    load_pretrained(network, spec, original.state_dict(), name="it", scale="imagenet")
    grey = greys()
    if normalise == "film":  # the typical one
        grey = (grey - grey.mean((2, 3), keepdim=True)) / grey.std((2, 3), keepdim=True, correction=0) * 0.22 + 0.48
    inputs = {"symmetric": grey * 2 - 1, "unit": grey, "film": (grey - 0.48) / 0.22}[normalise]
    expected = original.forward_features(scaled(grey, *IMAGENET))  # type: ignore[operator]
    torch.testing.assert_close(network.forward_features(inputs), expected, rtol=1e-3, atol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize(("name", "first", "norm"), [("resnet18", "conv1", "bn1"), ("densenet121", None, None)])
@torch.inference_mode()
def test_mean_of_the_colours_moves_into_batch_norm(name: str, first: str | None, norm: str | None) -> None:
    """Away from the border, where zeros that pad the film are another grey than in three channels."""
    first, norm = first or "features.conv0", norm or "features.norm0"
    original, spec = colour(name), spec_of(name)
    network = build(spec).eval()
    load_pretrained(network, spec, original.state_dict(), name="it")  # imagenet is what the zoo knows of both
    grey = greys()
    of = [model.get_submodule(norm)(model.get_submodule(first)(x)) for model, x in (
        (original, scaled(grey, *IMAGENET)), (network, grey * 2 - 1)
    )]  # fmt: skip
    torch.testing.assert_close(of[1][..., 2:-2, 2:-2], of[0][..., 2:-2, 2:-2], rtol=1e-3, atol=1e-4)


def test_weights_of_one_channel_are_taken_as_they_are() -> None:
    spec = small_spec()
    original, network = trained(build(spec)), build(spec).eval()
    familiar = {"familiarity.mean": torch.zeros(3)}  # as a bundle's weights have it
    weights = read_weights(as_file({**original.state_dict(), **familiar}), "it")
    assert load_pretrained(network, spec, weights, name="it").classifier
    torch.testing.assert_close(network(greys()), original(greys()))


def mobilenet(width: float, classes: int = 2) -> nn.Module:
    return trained(torchvision.models.mobilenet_v2(width_mult=width, num_classes=classes))


@pytest.mark.parametrize(("name", "width"), [("mobilenetv2_035", 0.35), ("mobilenetv2_100", 1.0)])
@torch.inference_mode()
def test_torchvisions_names_of_mobilenet_are_known(name: str, width: float) -> None:
    original, spec = mobilenet(width), spec_of(name)
    network = build(spec).eval()
    loaded = load_pretrained(network, spec, original.state_dict(), name="it", scale="symmetric")
    assert loaded.classifier
    assert not loaded.folded
    expected = original(scaled(greys(), *SYMMETRIC))
    torch.testing.assert_close(network(greys() * 2 - 1), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """Multiply each BatchNorm of a MobileNetV2 into its convolution; what is left of it adds a bias."""
    modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    for convolution, norm in zip(modules[::2], modules[1::2], strict=True):
        assert isinstance(norm, nn.BatchNorm2d)
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
        convolution.weight.mul_(slope.view(-1, 1, 1, 1))
        norm.bias.sub_(norm.running_mean * slope)  # type: ignore[operator]
        norm.running_mean.zero_()  # type: ignore[union-attr]
        norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]
        norm.weight.fill_(1)
    return network


@pytest.mark.parametrize("scale", ["symmetric", "imagenet"])
@torch.inference_mode()
def test_folded_batch_norm_computes_the_same_and_is_recognised(scale: str) -> None:
    spec = spec_of("mobilenetv2_035")
    whole, folded = build(spec).eval(), build(spec).eval()
    original = mobilenet(0.35)
    load_pretrained(whole, spec, original.state_dict(), name="it", scale=scale)
    assert load_pretrained(folded, spec, fold(original).state_dict(), name="it", scale=scale).folded
    torch.testing.assert_close(folded(greys()), whole(greys()), rtol=1e-3, atol=1e-4)


def test_unfolding_keeps_what_is_computed_and_makes_training_start_there() -> None:
    spec = spec_of("mobilenetv2_035", 64)
    network = build(spec).eval()
    load_pretrained(network, spec, fold(mobilenet(0.35)).state_dict(), name="it", scale="symmetric")
    films = greys(64, 32) * 2 - 1
    with torch.inference_mode():
        before = network(films)
        off = (copy.deepcopy(network).train()(films) - before).abs().max()
    unfold_batch_norm(network, films)
    assert not network.training
    with torch.inference_mode():
        torch.testing.assert_close(network(films), before, rtol=1e-3, atol=1e-4)
        in_training = network.train()(films)
    torch.testing.assert_close(in_training, before, rtol=1e-2, atol=1e-3)
    assert off > 0.05


def test_classifier_of_other_classes_is_left_out() -> None:
    spec = spec_of("resnet10t")
    network = build(spec)
    fresh = network.fc.weight.detach().clone()  # type: ignore[union-attr, operator]
    weights = colour("resnet10t", classes=7).state_dict()
    assert not load_pretrained(network, spec, weights, name="it").classifier
    assert torch.equal(network.fc.weight, fresh)  # type: ignore[arg-type, union-attr]
    without = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    assert not load_pretrained(network, spec, without, name="it").classifier
    same = colour("resnet10t", classes=2).state_dict()
    assert load_pretrained(network, spec, same, name="it").classifier
    assert torch.equal(network.fc.weight, same["fc.weight"])  # type: ignore[arg-type, union-attr]


def test_positions_of_a_transformer_take_another_size() -> None:
    original, spec = colour("vit_tiny_patch16_224", 64), spec_of("vit_tiny_patch16_224", 32)
    with torch.no_grad():
        original.pos_embed.fill_(0.25)  # type: ignore[union-attr, operator]
    network = build(spec)
    load_pretrained(network, spec, original.state_dict(), name="it")
    assert network.pos_embed.shape == (1, 5, 192)  # type: ignore[union-attr]
    torch.testing.assert_close(network.pos_embed, torch.full((1, 5, 192), 0.25), check_dtype=False)


def test_tensors_that_do_not_fit_are_named_and_nothing_is_taken() -> None:
    spec = spec_of("resnet10t")
    network = build(spec)
    before = weights_hash(network.state_dict())
    weights = colour("resnet10t").state_dict()
    del weights["layer1.0.bn1.weight"], weights["layer1.0.bn1.bias"], weights["layer2.0.bn1.bias"]
    del weights["layer3.0.bn1.bias"]
    weights["stem.weight"] = torch.zeros(1)
    weights["layer1.0.conv1.weight"] = torch.zeros(8, 64, 3, 3)
    with pytest.raises(InputError) as caught:
        load_pretrained(network, spec, weights, name="s3://weights/it.safetensors")
    assert str(caught.value).startswith(
        "s3://weights/it.safetensors: does not fit resnet10t: missing: layer1.0.bn1.bias, layer1.0.bn1.weight,"
        " layer2.0.bn1.bias and 1 more; unexpected: stem.weight; of another shape: layer1.0.conv1.weight [8, 64, 3, 3]"
        " for [64, 64, 3, 3]; choose"
    )
    assert "\n" not in str(caught.value)
    assert weights_hash(network.state_dict()) == before


def test_unknown_scale_is_refused() -> None:
    spec = small_spec()
    with pytest.raises(InputError, match=r"unknown scale 'keras'.*imagenet, symmetric, unit"):
        load_pretrained(build(spec), spec, {}, name="it", scale="keras")


def pth(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_pth_files_of_tensors_are_read(legacy: bool) -> None:
    weights = {"module.conv.weight": torch.arange(4.0).half(), "module.steps": torch.tensor(3)}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "epoch": 3}, buffer, _use_new_zipfile_serialization=not legacy)
    found = read_weights(buffer.getvalue(), "it.pth")
    assert found.keys() == {"conv.weight", "steps"}
    assert torch.equal(found["conv.weight"], torch.arange(4.0))
    assert found["steps"].dtype == torch.int64


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pth_file_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    data = pth({"weight": torch.zeros(1), "other": Bomb(tmp_path / "executed")})
    with pytest.raises(InputError, match=r"evil.pth: damaged, or holds more than tensors, which is never executed"):
        read_weights(data, "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"PK\x03\x04garbage",
        b"\x80\x02garbage",
        as_file({"a": torch.zeros(9)})[:-3],
        pth({"a": torch.ones(9)})[:-9],
    ],
    ids=["empty", "json", "zip", "pickle", "cut safetensors", "cut pth"],
)
def test_files_of_no_weights_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^it: "):
        read_weights(data, "it")


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"epoch": 3}, {}, torch.zeros(2)])
def test_pth_files_without_a_state_dict_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="it: holds no state dict"):
        read_weights(pth(value), "it")


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK", b"\x80\x02", b"\x08" + bytes(7)]))
def test_no_bytes_raise_anything_else(data: bytes, start: bytes) -> None:
    try:
        found = read_weights(start + data, "it")
    except InputError:
        return
    assert all(isinstance(value, Tensor) for value in found.values())


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RayscanError, match=r"resnet18 cannot be fetched .*huggingface.co/timm/.*give its file"):
        hub_weights("resnet18")


@pytest.mark.parametrize("name", ["cnn", "mobilenetv2_035"])
def test_models_without_published_weights_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"no published weights of '{name}'"):
        hub_weights(name)


def test_hash_differs_by_names_shapes_and_values() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 2.0])},
        {"a": torch.zeros(4).double(), "b": torch.ones(2)},
    ]
    assert len({weights_hash(tensors) for tensors in [base, *others]}) == 5
    assert weights_hash(base) == weights_hash(dict(reversed(base.items())))


@pytest.mark.skipif(not REAL, reason="RAYSCAN_REAL_WEIGHTS names no folder of real weights")
@pytest.mark.parametrize(
    ("file", "name", "folded"), [(KERAS, "mobilenetv2_035", False), (FOLDED, "mobilenetv2_100", True)]
)
@torch.inference_mode()
def test_real_files_fit_and_compute_what_torchvision_does(file: str, name: str, folded: bool) -> None:
    data = Path(REAL or "", file).read_bytes()
    spec = spec_of(name, 64)
    network = build(spec).eval()
    assert load_pretrained(network, spec, read_weights(data, file), name=file, scale="symmetric").folded is folded
    original = torchvision.models.mobilenet_v2(width_mult=1.0 if folded else 0.35).eval()
    original.load_state_dict(safetensors.torch.load(data), strict=folded)
    grey = greys(64)
    expected = original.features(scaled(grey, *SYMMETRIC))
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(network.forward_features(grey * 2 - 1), expected, rtol=1e-3, atol=1e-3)  # type: ignore[operator]
