import numpy as np
import pytest
import torch

from models.networks.classifier import ScanClassifier
from models.networks.familiarity import AXES, MARGIN, REFUSED, Familiarity, fit_familiarity, limit_of
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from tests.models.synthetic import blob_films, small_spec


def cloud(films: int, *, seed: int = 0, width: int = 200) -> torch.Tensor:
    """Features of a Gaussian whose axes shrink and do not lie along the coordinates."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99))).Q
    scales = 10 * 0.9 ** torch.arange(width)
    return 5 + (torch.randn(films, width, generator=generator) * scales) @ turn


def test_films_of_the_same_kind_lie_about_one_away_and_others_farther() -> None:
    familiarity = fit_familiarity(cloud(1500, width=300))
    assert familiarity is not None
    assert familiarity.axes.shape == (AXES, 300)
    familiarity = fit_familiarity(cloud(1500))
    assert familiarity is not None
    same = familiarity(cloud(500, seed=1))
    assert same.shape == (500,)
    assert float(same.square().mean().sqrt()) == pytest.approx(1, abs=0.1)
    shifted = cloud(500, seed=1)
    shifted[:, 0] += 15
    assert float(familiarity(shifted).median()) > float(same.quantile(0.99))


def test_it_is_mahalanobis_distance_where_there_are_no_more_axes_than_kept() -> None:
    """Against numpy's inverse covariance; with this many films hardly anything is shrunk."""
    features = cloud(20_000, width=6)
    familiarity = fit_familiarity(features)
    assert familiarity is not None
    centred = features[:50].double() - features.double().mean(dim=0)
    inverse = torch.linalg.inv(torch.cov(features.double().T, correction=0))
    expected = ((centred @ inverse) * centred).sum(dim=1).div(6).sqrt()
    torch.testing.assert_close(familiarity(features[:50]).double(), expected, rtol=0.01, atol=1e-3)


def test_leaving_the_axes_of_the_training_films_counts() -> None:
    flat = torch.zeros(400, 100)
    flat[:, :80] = cloud(400, width=80)
    flat[:, 80:] = torch.randn(400, 20, generator=torch.Generator().manual_seed(5)) * 1e-3
    familiarity = fit_familiarity(flat)
    assert familiarity is not None
    ordinary = familiarity(flat).max()
    odd = flat[:5].clone()
    odd[:, 90] += 5
    assert bool((familiarity(odd) > 1.5 * ordinary).all())


@pytest.mark.parametrize("films", [2, 5, 40])
def test_few_films_give_finite_distances(films: int) -> None:
    familiarity = fit_familiarity(cloud(films))
    assert familiarity is not None
    assert bool(torch.isfinite(familiarity(cloud(30, seed=2))).all())


def test_few_familiar_films_and_all_others_lie_beyond_the_limit() -> None:
    familiarity = fit_familiarity(cloud(1500), held_out=cloud(1500, seed=1))
    assert familiarity is not None
    limit = float(familiarity.limit)
    assert float((familiarity(cloud(3000, seed=4)) > limit).float().mean()) < REFUSED
    assert float(familiarity(cloud(200, seed=5) + 40 * torch.eye(200)[3]).min()) > limit


def test_the_limit_is_that_of_films_the_network_did_not_learn_from() -> None:
    learned, spread = cloud(400), 5 + 2 * (cloud(300, seed=1) - 5)
    near, far = fit_familiarity(learned, held_out=cloud(300, seed=1)), fit_familiarity(learned, held_out=spread)
    assert near is not None
    assert far is not None
    assert torch.equal(near.axes, far.axes), "they say how far is far, not where the films lie"
    assert float(far.limit) > 1.5 * float(near.limit)
    for none in (None, spread[:0]):
        alone = fit_familiarity(learned, held_out=none)
        assert alone is not None
        assert float(alone.limit) == float("inf")


@pytest.mark.parametrize("films", [114, 300, 2000])
def test_more_than_two_in_a_hundred_are_refused_in_one_of_ten_cases(films: int) -> None:
    generator = torch.Generator().manual_seed(films)
    drawn = torch.rand(1000, films, generator=generator)
    refused = torch.stack([1 - limit_of(distances) for distances in drawn])
    too_many = float((refused > REFUSED).float().mean())
    assert 0.04 <= too_many <= 0.12, "no more often, and no film more is let through than must be"


def test_too_few_films_set_a_wide_limit() -> None:
    assert float(limit_of(torch.arange(100.0))) == MARGIN * 99
    assert float(limit_of(torch.arange(114.0))) == 113


def test_features_that_do_not_vary_have_no_familiarity() -> None:
    assert fit_familiarity(torch.full((50, 8), 3.0)) is None
    assert fit_familiarity(torch.zeros(50, 8)) is None


def test_it_is_fitted_the_same_way_each_time_and_survives_its_state() -> None:
    one, two = fit_familiarity(cloud(300)), fit_familiarity(cloud(300))
    assert one is not None
    assert two is not None
    kept = Familiarity.from_state(one.state_dict())
    features = cloud(20, seed=3)
    assert torch.equal(one(features), two(features))
    assert torch.equal(one(features), kept(features))
    assert torch.equal(one.limit, kept.limit)
    older = {name: tensor for name, tensor in one.state_dict().items() if name != "limit"}
    assert float(Familiarity.from_state(older).limit) == float("inf"), "a model made before there was a limit has none"
    with pytest.raises(KeyError):
        Familiarity.from_state({"mean": torch.zeros(3)})
    with pytest.raises(TypeError):
        Familiarity.from_state({**one.state_dict(), "more": torch.zeros(3)})


def test_films_of_another_kind_lie_farther_in_the_features_of_a_network() -> None:
    spec = small_spec()
    torch.manual_seed(1)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), build(spec)).eval()
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8), (20, 32, 32))
    with torch.inference_mode():
        films, others, ramps = (
            classifier.description(torch.tensor(pixels))
            for pixels in (blob_films(200).pixels, blob_films(40, seed=7).pixels, ramp)
        )
    familiarity = fit_familiarity(films, others)
    assert familiarity is not None
    assert float(familiarity(ramps).min()) > float(familiarity.limit)
    assert float(familiarity(ramps).min()) > float(familiarity(others).max())
