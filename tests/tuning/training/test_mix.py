import numpy as np
import pytest
import scipy.stats
import torch

from tuning.training.mix import mix

SIDE = 64


def plain_films(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Films of one grey: class 0 is black, class 1 is 200."""
    labels = torch.arange(count) % 2
    return (labels * 200).to(torch.uint8)[:, None, None].repeat(1, SIDE, SIDE), labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_a_label_is_shared_as_its_pixels_are(mixup: float, cutmix: float) -> None:
    films, labels = plain_films(40)
    for seed in range(4):
        mixed, shares = mix(films, labels, classes=2, mixup=mixup, cutmix=cutmix, rng=rng(seed))
        assert torch.allclose(shares.sum(dim=1), torch.ones(40))
        assert torch.allclose(mixed.float().mean(dim=(1, 2)), 200 * shares[:, 1], atol=1e-3)
        assert ((shares[:, 1] > 0.01) & (shares[:, 1] < 0.99)).any()


def test_mixup_shares_follow_the_beta_distribution() -> None:
    labels = torch.arange(6000) % 2
    films = torch.zeros(6000, 1, 1, dtype=torch.uint8)
    _, shares = mix(films, labels, classes=2, mixup=0.4, cutmix=0.0, rng=rng())
    own = shares[torch.arange(6000), labels]
    between = own[own < 1]  # the others met a film of their own class
    assert 2700 < len(between) < 3300
    assert scipy.stats.kstest(between.numpy(), scipy.stats.beta(0.4, 0.4).cdf).pvalue > 1e-4


def test_cutmix_takes_one_box_and_leaves_the_rest() -> None:
    films, labels = plain_films(30)
    mixed, _ = mix(films, labels, classes=2, mixup=0.0, cutmix=1.0, rng=rng())
    assert mixed.dtype == torch.uint8
    foreign = mixed != films
    for film, box in zip(mixed, foreign, strict=True):
        rows, columns = box.any(dim=1).nonzero().flatten(), box.any(dim=0).nonzero().flatten()
        if len(rows):
            assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert box.sum() == len(rows) * len(columns)
        assert set(film.unique().tolist()) <= {0, 200}
    assert foreign.flatten(1).any(dim=1).sum() > 5


def test_both_take_turns_and_the_generator_decides() -> None:
    films, labels = plain_films(16)
    kinds = {mix(films, labels, classes=2, mixup=1.0, cutmix=1.0, rng=rng(seed))[0].dtype for seed in range(20)}
    assert kinds == {torch.uint8, torch.float32}
    first, second = (mix(films, labels, classes=2, mixup=1.0, cutmix=0.0, rng=rng(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_without_alphas_the_films_stay() -> None:
    films, labels = plain_films(4)
    mixed, shares = mix(films, labels, classes=3, mixup=0.0, cutmix=0.0, rng=rng())
    assert mixed is films
    assert torch.equal(shares, torch.nn.functional.one_hot(labels, 3).float())
