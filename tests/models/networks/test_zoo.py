import pytest
import torch

from models.errors import InputError
from models.networks.zoo import build, classify, described, entry, features, has_features, known_models, layer_groups
from models.spec import ModelSpec, Scalar
from tests.models.synthetic import small_spec
from tuning.training.losses import cross_entropy

BACKBONES = {
    "legacy_xception": 64,
    "resnet18": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "mobilenetv3_large_100": 32,
    "mobilenetv2_035": 32,
    "mobilenetv2_100": 32,
    "convnext_tiny": 32,
    "vit_small_patch16_224": 32,
}
"""And the side of films that is enough for each."""

FILMS = torch.randn(4, 1, 32, 32)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    "spec",
    [
        small_spec("mlp"),
        small_spec("mlp", layers=0),
        small_spec("cnn"),
        small_spec("cnn", depth=3, width=12, residual=False, pooling="both", head=16, blocks=2),
        small_spec("cnn", depth=4, width=4, residual=True, pooling="max"),
        small_spec("cnn", size=36, depth=4, width=8),
        small_spec("cnn", depth=3, width=12, kernel=5, norm="group", downsample="max"),
        small_spec("cnn", depth=2, width=8, kernel=7, norm="none", downsample="avg", blocks=2),
        small_spec("cnn", size=37, depth=2, width=8, norm="none", downsample="max", residual=False),
        small_spec("resnet10t", drop_rate=0.1),
        small_spec("vit_tiny_patch16_224", drop_path_rate=0.1),
    ],
    ids=lambda spec: f"{spec.name}-{'-'.join(f'{k}={v}' for k, v in spec.parameters.items())}",
)
def test_every_family_gives_logits_and_learns_a_step(spec: ModelSpec) -> None:
    torch.manual_seed(0)
    network = build(spec).train().to(memory_format=torch.channels_last)
    films = torch.randn(4, 1, spec.preprocessing.size, spec.preprocessing.size)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    logits = network(films)
    assert logits.shape == (4, 2)
    cross_entropy(logits, LABELS).backward()
    optimiser.step()
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_majority_gives_the_prevalence_and_has_no_gradient() -> None:
    network = build(small_spec("majority"))
    network.learn(torch.tensor([1] * 74 + [0] * 26))  # type: ignore[operator]
    assert not list(network.parameters())
    probability = torch.softmax(network(FILMS), dim=1)
    assert probability[:, 1].numpy() == pytest.approx(0.7376, abs=1e-3)
    assert "log_prior" in network.state_dict()


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("cmn", {}, "did you mean .*cnn"),
        ("resnet51", {}, "did you mean .*resnet50"),
        ("cnn", {"dept": 3}, "no parameter 'dept'; did you mean 'depth'"),
        ("majority", {"x": 3}, "it takes: none"),
        ("cnn", {"depth": 3.5}, "depth=3.5 must be of type int"),
        ("cnn", {"residual": 1}, "must be of type bool"),
        ("cnn", {"depth": 5}, "needs films of at least 64 pixels, these have 32"),
        ("cnn", {"width": 0}, "out of range"),
        ("cnn", {"pooling": "median"}, "unknown pooling"),
        ("cnn", {"kernel": 4}, "kernel=4 is out of range; choose from 3, 5, 7"),
        ("cnn", {"norm": "layer"}, "unknown norm 'layer'; choose from batch, group, none"),
        ("cnn", {"downsample": "min"}, "unknown downsample 'min'"),
        ("resnet10t", {"drop_rate": 1.0}, "drop_rate=1.0 is out of range"),
        ("resnet10t", {"same_padding": True}, "timm cannot build 'resnet10t'"),
        ("mlp", {"dropout": 1.0}, "out of range"),
        ("resnet10t", {"depth": 3}, "no parameter 'depth'"),
        ("vgg11", {"drop_path_rate": 0.1}, "timm cannot build 'vgg11'"),
    ],
)
def test_wrong_names_and_values_say_what_to_write_instead(name: str, parameters: dict[str, Scalar], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(small_spec(name, **parameters))


def test_known_models_begin_with_our_own() -> None:
    models = known_models()
    assert models[:3] == ["majority", "mlp", "cnn"]
    assert {"densenet121", "legacy_xception"} <= set(models)


def test_wide_spread_of_cnn_shapes_survives_a_backward_pass() -> None:
    """Strided 1x1 convolutions of few channels crash the process in oneDNN; none may come back."""
    for width in (4, 8, 12, 20):
        network = build(small_spec("cnn", size=112, depth=3, width=width)).to(memory_format=torch.channels_last)
        network(torch.randn(2, 1, 112, 112)).sum().backward()
        strided = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
        assert strided
        assert all(module.stride == (1, 1) for module in strided)


@pytest.mark.parametrize(("name", "size"), [("cnn", 32), ("mlp", 32), *BACKBONES.items()])
def test_classifier_of_features_is_the_network(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build(small_spec(name, size)).eval()
    films = torch.randn(2, 1, size, size)
    with torch.inference_mode():
        found = features(network, films)
        torch.testing.assert_close(classify(network, found), network(films))
    assert found.flatten(1).shape[1] > 2
    assert has_features(network, films)


@pytest.mark.parametrize("name", ["majority", "deit_tiny_distilled_patch16_224"])
def test_networks_without_one_classifier_have_no_features(name: str) -> None:
    assert not has_features(build(small_spec(name)).eval(), FILMS)


def test_hidden_layers_before_the_classes_are_part_of_the_features() -> None:
    network = build(small_spec("cnn", depth=2, width=8, head=24)).eval()
    assert features(network, FILMS).shape == (4, 24)
    assert has_features(network, FILMS)


@pytest.mark.parametrize(("name", "size"), BACKBONES.items())
def test_groups_of_a_backbone_have_each_weight_once_and_the_classifier_last(name: str, size: int) -> None:
    network = build(small_spec(name, size))
    groups = layer_groups(network)
    assert len(groups) >= 3
    grouped = [id(parameter) for group in groups for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    known = entry(name)
    classifier = network.get_submodule(known.classifier)
    assert isinstance(classifier, torch.nn.Linear)
    assert classifier.out_features == 2
    assert {id(parameter) for parameter in classifier.parameters()} == {id(parameter) for parameter in groups[-1]}
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    assert id(first.weight) in {id(parameter) for parameter in groups[0]}
    # a normalisation alone is no group to freeze or to give a rate of its own
    assert all(any(parameter.ndim > 1 for parameter in group) for group in groups)


def test_groups_of_a_backbone_that_names_none_are_its_top_level_modules() -> None:
    network = build(small_spec("poolformer_s12"))
    assert not hasattr(network, "group_matcher")
    groups = layer_groups(network)
    grouped = [id(parameter) for group in groups for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert [parameter.shape[0] for parameter in groups[-1]] == [2, 2]
    assert len(groups) == 3


@pytest.mark.parametrize(
    ("spec", "groups"),
    [
        (small_spec("majority"), 0),
        (small_spec("mlp", layers=0), 1),
        (small_spec("mlp", layers=3), 4),
        (small_spec("cnn", depth=3, width=8, blocks=2), 5),
        (small_spec("cnn", depth=2, width=8, head=16), 5),
        (small_spec("deit_tiny_distilled_patch16_224"), 14),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else str(value),
)
def test_groups_are_stages_and_hidden_layers(spec: ModelSpec, groups: int) -> None:
    network = build(spec)
    found = layer_groups(network)
    assert len(found) == groups
    grouped = [id(parameter) for group in found for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert all(parameter.shape[0] == 2 for group in found[-1:] for parameter in group)


def test_groups_run_from_the_film_to_the_classes() -> None:
    """A change of a group moves the output of every deeper one, and of no shallower one."""
    network = build(small_spec("cnn", depth=2, width=8, residual=False)).eval()
    seen: list[torch.Tensor] = []
    modules = [network.stem, *network.stages, network.head[-1]]  # type: ignore[misc, index]
    for module in modules:
        module.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    network(FILMS)
    before = seen[:]
    for depth, group in enumerate(layer_groups(network)):
        seen.clear()
        kept = [parameter.detach().clone() for parameter in group]
        with torch.no_grad():
            for parameter in group:
                parameter.add_(1)
        network(FILMS)
        assert [torch.equal(a, b) for a, b in zip(before, seen, strict=True)] == [n < depth for n in range(4)]
        with torch.no_grad():
            for parameter, value in zip(group, kept, strict=True):
                parameter.copy_(value)


def test_entries_say_what_pretrained_weights_want() -> None:
    assert entry("legacy_xception").size == 299
    assert entry("legacy_xception").mean == (0.5, 0.5, 0.5)
    assert entry("resnet18").mean == (0.485, 0.456, 0.406)
    assert entry("vit_small_patch16_224").normalise == "symmetric"
    assert entry("cnn").normalise == "film"
    assert entry("majority").classifier == ""
    with pytest.raises(InputError, match=r"unknown model 'resnet51'; did you mean .*resnet50"):
        entry("resnet51")


def test_batches_do_not_matter_to_group_normalisation_nor_to_none() -> None:
    for norm, alike in (("group", True), ("none", True), ("batch", False)):
        network = build(small_spec("cnn", depth=2, width=8, dropout=0.0, norm=norm)).train()
        alone = torch.cat([network(film[None]) for film in FILMS])
        assert torch.allclose(network(FILMS), alone, rtol=1e-4, atol=1e-5) is alike, norm


@pytest.mark.parametrize("residual", [False, True])
def test_signals_live_through_many_blocks_without_normalisation(residual: bool) -> None:
    torch.manual_seed(0)
    network = build(small_spec("cnn", 128, depth=3, width=16, blocks=4, norm="none", residual=residual)).eval()
    found = features(network, torch.randn(2, 1, 128, 128)).detach()
    assert 0.01 < float(found.std()) < 10


@pytest.mark.parametrize("name", ["mobilenetv2_035", "efficientnet_b0"])
def test_same_padding_is_that_of_tensorflow(name: str) -> None:
    network = build(small_spec(name, same_padding=True)).eval()
    stem = network.get_submodule("conv_stem")
    # TensorFlow's guide to padding SAME: an even side, kernel 3 and stride 2 leave one pixel, on the right and below
    padded = torch.nn.functional.pad(FILMS, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, stem.weight, stride=2)  # type: ignore[arg-type]
    torch.testing.assert_close(stem(FILMS), expected)
    strided = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == 5
    assert {module.padding for module in strided} == {(0, 0)}


@pytest.mark.parametrize("name", ["cnn", "mobilenetv2_035"])
def test_a_film_is_described_by_the_moments_of_the_last_stages(name: str) -> None:
    torch.manual_seed(0)
    network = build(small_spec(name, 64)).eval()
    films = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        computed, seen = described(network, films)
        torch.testing.assert_close(computed, features(network, films))
        maps = network.maps(films) if name == "cnn" else network.forward_intermediates(films)[1]
    parts = [part for stage in maps[-3:] for part in (stage.mean((2, 3)), stage.std((2, 3), correction=0))]
    torch.testing.assert_close(seen, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)
    flat = torch.ones(1, 1, 64, 64)
    with torch.inference_mode():
        assert bool(torch.isfinite(described(network, flat)[1]).all())


def test_a_network_without_stages_is_described_by_its_features() -> None:
    network = build(small_spec("mlp")).eval()
    with torch.inference_mode():
        computed, seen = described(network, FILMS)
    assert torch.equal(computed, seen)
