import pytest
import torch
from torch.nn import functional

from models.losses import class_weights, cross_entropy, focal

LOGITS = torch.tensor([[2.0, -1.0], [0.3, 0.1], [-1.0, 1.5]])
LABELS = torch.tensor([0, 1, 1])


def test_class_weights_give_each_class_the_same_share() -> None:
    labels = torch.tensor([1] * 9 + [0] * 3)
    weights = class_weights(labels, 2)
    assert weights[labels][labels == 1].sum() == pytest.approx(6)
    assert weights[labels][labels == 0].sum() == pytest.approx(6)


def test_focal_of_gamma_zero_is_cross_entropy() -> None:
    weights = torch.tensor([2.0, 0.5])
    assert torch.allclose(
        focal(LOGITS, LABELS, weights=weights, gamma=0), cross_entropy(LOGITS, LABELS, weights=weights)
    )


def test_focal_counts_sure_films_less() -> None:
    sure, unsure = torch.tensor([[4.0, -4.0]]), torch.tensor([[0.1, 0.0]])
    label = torch.tensor([0])
    for logits, low, high in ((sure, 0.0, 1e-3), (unsure, 0.2, 0.3)):
        share = focal(logits, label) / cross_entropy(logits, label)
        assert low <= share <= high


def test_smoothing_as_in_torch() -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(cross_entropy(LOGITS, LABELS, smoothing=0.1), expected)
