from typing import Protocol

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tuning.training.losses import class_weights, cross_entropy, focal, importance


class Loss(Protocol):
    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        *,
        weights: torch.Tensor | None = None,
        smoothing: float = 0.0,
    ) -> torch.Tensor: ...


LOGITS = torch.tensor([[2.0, -1.0], [0.3, 0.1], [-1.0, 1.5]])
LABELS = torch.tensor([0, 1, 1])
LOSSES = [cross_entropy, focal]
WEIGHTS = torch.tensor([2.0, 0.5])


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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_whole_shares_give_what_indices_give(loss: Loss, weights: torch.Tensor | None, smoothing: float) -> None:
    shares = functional.one_hot(LABELS, 2).float()
    of_indices = loss(LOGITS, LABELS, weights=weights, smoothing=smoothing)
    assert torch.allclose(loss(LOGITS, shares, weights=weights, smoothing=smoothing), of_indices)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_of_a_mixed_film_is_the_mixture_of_its_two(weights: torch.Tensor | None) -> None:
    logits, share = LOGITS[:1], 0.3
    mixed = cross_entropy(logits, torch.tensor([[share, 1 - share]]), weights=weights)
    alone = [functional.cross_entropy(logits, torch.tensor([label])) for label in (0, 1)]
    counts = [1.0, 1.0] if weights is None else weights.tolist()
    expected = share * counts[0] * alone[0] + (1 - share) * counts[1] * alone[1]
    assert torch.allclose(mixed, expected / (share * counts[0] + (1 - share) * counts[1]))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
@given(cut=st.integers(1, 11), seed=st.integers(0, 1000))
def test_parts_weighted_by_importance_make_the_whole(loss: Loss, soft: bool, cut: int, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 3, generator=drawn)
    labels = torch.randint(0, 3, (12,), generator=drawn)
    if soft:
        labels = torch.softmax(torch.randn(12, 3, generator=drawn), dim=1)
    weights = torch.tensor([3.0, 1.0, 0.2])
    counts = importance(labels, weights)
    parts = (slice(None, cut), slice(cut, None))
    losses = [loss(logits[part], labels[part], weights=weights, smoothing=0.1) for part in parts]
    total = sum(one * counts[part].sum() for one, part in zip(losses, parts, strict=True)) / counts.sum()
    assert torch.allclose(total, loss(logits, labels, weights=weights, smoothing=0.1), rtol=1e-4)
