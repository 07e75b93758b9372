"""Priors of archives that were put together to have one, and against an independent statement of the estimates."""

import numpy as np
import pytest

from models.errors import InputError
from models.statistics.prior_shift import PriorShift, bbse, saerens


def archive(rng: np.random.Generator, films: int, prior: float, calibrated_on: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the probabilities of a model that is perfectly calibrated where the prior is `calibrated_on`."""
    labels = (rng.random(films) < prior).astype(int)
    evidence = rng.normal(2.0 * labels - 1.0, 1.0)  # log-likelihood ratio of two unit normals 2 apart: 2 x
    odds = 2 * evidence + np.log(calibrated_on / (1 - calibrated_on))
    return labels, 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("prior", [0.02, 0.3, 0.625, 0.9])
def test_the_prior_of_an_archive_is_found(prior: float) -> None:
    rng = np.random.default_rng(0)
    labels, probability = archive(rng, 20_000, 0.74, 0.74)
    _, unlabelled = archive(rng, 20_000, prior, 0.74)
    assert saerens(unlabelled, 0.74).estimated == pytest.approx(prior, abs=0.012)
    known = {
        "sensitivity": float((probability[labels == 1] >= 0.5).mean()),
        "specificity": float((probability[labels == 0] < 0.5).mean()),
        "training": 0.74,
    }
    assert bbse(unlabelled, 0.5, **known).estimated == pytest.approx(prior, abs=0.02)
    spoilt = unlabelled**3  # no longer calibrated, though the films called are nearly the same
    assert bbse(spoilt, 0.5**3, **known).estimated == pytest.approx(prior, abs=0.02)


def test_corrected_probabilities_are_calibrated_there() -> None:
    rng = np.random.default_rng(1)
    labels, probability = archive(rng, 40_000, 0.2, 0.74)
    corrected = saerens(probability, 0.74).corrected(probability)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (corrected >= low) & (corrected < low + 0.2)
        assert labels[inside].mean() == pytest.approx(corrected[inside].mean(), abs=0.05)
    assert labels.mean() == pytest.approx(corrected.mean(), abs=0.01)
    assert probability.mean() > 0.3, "or there was nothing to correct"
    assert (np.argsort(corrected, kind="stable") == np.argsort(probability, kind="stable")).all()


def test_the_same_prior_changes_nothing() -> None:
    shift = PriorShift(method="saerens", training=0.4, estimated=0.4)
    assert shift.bias == 0
    assert shift.corrected(np.array([0.0, 0.3, 1.0])) == pytest.approx([0, 0.3, 1], abs=1e-8)


def test_the_estimate_has_the_highest_likelihood() -> None:
    _, probability = archive(np.random.default_rng(2), 500, 0.35, 0.6)
    found = saerens(probability, 0.6).estimated
    grid = np.linspace(0.01, 0.99, 981)
    likelihood = np.log(probability[:, None] * grid / 0.6 + (1 - probability[:, None]) * (1 - grid) / 0.4).sum(axis=0)
    assert found == pytest.approx(grid[np.argmax(likelihood)], abs=0.002)


def test_without_diseased_films_the_prior_stays_above_zero() -> None:
    shift = saerens(np.full(100, 1e-6), 0.5)
    assert shift.estimated == pytest.approx(0.005)
    assert np.isfinite(shift.corrected(np.array([0.0, 0.5, 1.0]))).all()


def test_a_model_no_better_than_chance_is_refused() -> None:
    with pytest.raises(InputError, match="as many healthy films positive as diseased ones"):
        bbse(np.array([0.5]), 0.5, sensitivity=0.4, specificity=0.6, training=0.5)
    with pytest.raises(InputError, match="with and without disease"):
        saerens(np.array([0.5]), 1.0)
