import pytest
import torch
from torch import nn

from models.errors import InputError
from models.networks.zoo import build, layer_groups
from tests.models.synthetic import small_spec
from tuning.training.optimiser import Average, copy_weights, freeze, make_optimiser, set_rate, train_mode
from tuning.training.settings import TrainSettings


def network() -> nn.Module:
    torch.manual_seed(0)
    return build(small_spec())


def test_every_weight_once_and_decay_only_for_matrices() -> None:
    cnn = network()
    optimiser = make_optimiser(layer_groups(cnn), TrainSettings(weight_decay=0.3))
    held = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in cnn.parameters()}
    assert len(held) == len(list(cnn.parameters()))
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)


def test_each_group_learns_at_a_share_of_the_next_ones_rate() -> None:
    groups = layer_groups(network())
    optimiser = make_optimiser(groups, TrainSettings(rate_decay=0.5, frozen_groups=1))
    set_rate(optimiser, 0.8)
    rates = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    for above_last, group in enumerate(reversed(groups[1:])):
        assert {rates[id(parameter)] for parameter in group} == {0.8 * 0.5**above_last}
    assert not any(id(parameter) in rates for parameter in groups[0])


def test_groups_join_from_the_classifier_down_to_the_frozen_ones() -> None:
    cnn = network()
    groups = layer_groups(cnn)
    settings = TrainSettings(frozen_groups=1, unfreeze_every=2)
    learning = []
    for epoch in range(1, 10):
        freeze(groups, settings, epoch)
        assert all(len({parameter.requires_grad for parameter in group}) == 1 for group in groups)
        learning.append([group[0].requires_grad for group in groups].count(True))
        assert groups[-1][0].requires_grad
    most = len(groups) - 1
    assert learning == [min(most, 1 + (epoch - 1) // 2) for epoch in range(1, 10)]
    assert not groups[0][0].requires_grad


def test_freezing_everything_is_refused() -> None:
    groups = layer_groups(network())
    with pytest.raises(InputError, match=f"frozen_groups={len(groups)} leaves nothing to learn"):
        freeze(groups, TrainSettings(frozen_groups=len(groups)), 1)


def test_batch_normalisation_of_frozen_layers_keeps_its_statistics() -> None:
    cnn = network()
    groups = layer_groups(cnn)
    freeze(groups, TrainSettings(frozen_groups=1), 1)
    before = {name: value.clone() for name, value in cnn.state_dict().items()}
    train_mode(cnn)
    cnn(torch.randn(4, 1, 32, 32))
    frozen = {id(parameter) for parameter in groups[0]}
    for name, module in cnn.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            same = torch.equal(module.running_mean, before[f"{name}.running_mean"])  # type: ignore[arg-type]
            assert same == (id(module.weight) in frozen)
    assert cnn.training


def test_average_follows_its_formula_and_takes_the_statistics_along() -> None:
    cnn = network()
    average = Average(cnn, 0.9)
    name = next(name for name, _ in cnn.named_parameters())
    mean = "stem.0.1.running_mean"
    expected = {key: cnn.state_dict()[key].double() for key in (name, mean)}
    torch.manual_seed(1)
    for step in range(1, 120):
        with torch.no_grad():
            for value in (*cnn.parameters(), cnn.get_buffer(mean)):
                value.add_(torch.randn_like(value))
            cnn.get_buffer("stem.0.1.num_batches_tracked").add_(1)
        average.update(cnn)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in expected.items():
            expected[key] = decay * value + (1 - decay) * cnn.state_dict()[key].double()
    averaged = average.network.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(averaged[key].double(), value, rtol=1e-3, atol=1e-4)
    assert averaged["stem.0.1.num_batches_tracked"] == 119
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_weights_to_start_from_may_lack_the_classifier_alone() -> None:
    source, target = network(), build(small_spec())
    head = layer_groups(target)[-1]
    fresh = [parameter.detach().clone() for parameter in head]
    names = {id(parameter): name for name, parameter in target.named_parameters()}
    weights = {
        name: value
        for name, value in source.state_dict().items()
        if name not in {names[id(parameter)] for parameter in head} and not name.endswith("num_batches_tracked")
    }
    copy_weights(weights, target, head)
    for name, value in weights.items():
        assert torch.equal(target.state_dict()[name], value)
    assert all(torch.equal(now, then) for now, then in zip(head, fresh, strict=True))

    thousand = {names[id(head[0])]: torch.zeros(1000, head[0].shape[1])}
    copy_weights(weights | thousand, target, head)
    assert torch.equal(head[0], fresh[0])

    body = next(name for name, value in weights.items() if value.ndim == 4)
    for wrong, words in (
        ({name: value for name, value in weights.items() if name != body}, f"lack {body};"),
        (weights | {"attention.qkv": torch.zeros(3)}, "have an unknown attention.qkv"),
        (weights | {body: torch.zeros(1, 1, 7, 7)}, f"have another shape of {body}"),
    ):
        with pytest.raises(InputError, match=words):
            copy_weights(wrong, target, head)
