import numpy as np
import pytest
import torch

from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess, resize
from models.networks.zoo import build
from models.spec import Normalise, Preprocessing
from models.statistics.calibration import Calibration
from tests.models.synthetic import blob_films, small_spec

FILMS = torch.from_numpy(blob_films(8, size=48).pixels)


@pytest.mark.parametrize("normalise", ["film", "unit", "symmetric"])
@pytest.mark.parametrize("size", [32, 48])
def test_a_film_alone_equals_the_film_in_a_batch(normalise: Normalise, size: int) -> None:
    preprocess = Preprocess(Preprocessing(size=size, normalise=normalise))
    batch = preprocess(FILMS)
    assert batch.shape == (8, 1, size, size)
    assert batch.dtype == torch.float32
    for index in range(len(FILMS)):
        assert torch.equal(preprocess(FILMS[index : index + 1])[0], batch[index])


def test_normalisations_do_what_they_say() -> None:
    film = Preprocess(Preprocessing(size=48, normalise="film"))(FILMS)
    assert film.mean(dim=(2, 3)).abs().max() < 1e-5
    assert (film.std(dim=(2, 3), unbiased=False) - 1).abs().max() < 1e-5
    unit = Preprocess(Preprocessing(size=48, normalise="unit"))(FILMS)
    assert torch.equal(unit.squeeze(1), FILMS.float() / 255)
    ends = torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(1, 16, 2).repeat(1, 1, 8)
    symmetric = Preprocess(Preprocessing(size=16, normalise="symmetric"))(ends)
    assert symmetric.min() == -1
    assert symmetric.max() == 1


def test_uniform_film_stays_finite_and_small() -> None:
    flat = torch.full((1, 32, 32), 7, dtype=torch.uint8)
    flat[0, 0, 0] = 8
    assert Preprocess(Preprocessing(size=32))(flat).abs().max() <= 1


def test_resizing_beforehand_equals_resizing_in_the_graph() -> None:
    kept = resize(FILMS, 32).to(torch.uint8)
    preprocess = Preprocess(Preprocessing(size=32))
    assert torch.equal(preprocess(kept), preprocess(FILMS))


def test_classifier_exports_with_any_batch_and_gives_probabilities() -> None:
    spec = small_spec()
    curve = ((-2.0, -1.5), (0.0, 0.2), (3.0, 2.0))
    calibration = Calibration(temperature=1.7, operating_points={"balanced": 0.5}, bias=-0.4, curve=curve)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), build(spec), calibration).eval()
    films = torch.from_numpy(blob_films(4).pixels)
    exported = torch.export.export(classifier, (films,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = torch.from_numpy(blob_films(6, seed=1).pixels)
    with torch.inference_mode():
        probability = classifier(other)
        assert torch.allclose(exported.module()(other), probability, atol=1e-6)
        expected = calibration.probabilities(classifier.logits(other).numpy())
        assert torch.allclose(probability, torch.from_numpy(expected), atol=1e-6)
    assert torch.allclose(probability.sum(dim=1), torch.ones(6))
    assert probability.numpy().dtype == np.float32
