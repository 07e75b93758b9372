import pytest
import torch

from models.errors import InputError
from models.losses import cross_entropy
from models.spec import ModelSpec, Scalar
from models.zoo import build, classify, features, has_features, known_models
from tests.models.synthetic import small_spec

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


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn", 32),
        ("mlp", 32),
        ("resnet18", 32),
        ("densenet121", 32),
        ("mobilenetv3_large_100", 32),
        ("mobilenetv2_050", 32),
        ("efficientnet_b0", 32),
        ("convnext_tiny", 32),
        ("vit_small_patch16_224", 32),
        ("legacy_xception", 64),
    ],
)
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
