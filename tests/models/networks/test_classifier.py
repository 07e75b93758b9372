import numpy as np
import torch

from models.networks.classifier import BATCH, copy_on, in_batches, trained_classifier
from models.networks.zoo import build
from models.statistics.calibration import Calibration
from tests.models.synthetic import blob_films, small_spec


def test_batches_give_what_all_films_at_once_give() -> None:
    spec = small_spec("mlp")
    pixels = blob_films(2 * BATCH + 3).pixels
    calibration = Calibration(temperature=2.0, operating_points={"balanced": 0.5})
    classifier = trained_classifier(spec, build(spec).state_dict(), calibration)
    with torch.inference_mode():
        probabilities, seen = classifier(torch.tensor(pixels)), classifier.description(torch.tensor(pixels))
    np.testing.assert_allclose(in_batches(classifier, pixels), probabilities, atol=1e-6)
    np.testing.assert_allclose(in_batches(classifier.description, pixels), seen, atol=1e-5)


def test_a_copy_leaves_the_classifier_alone() -> None:
    spec = small_spec("mlp")
    classifier = trained_classifier(spec, build(spec).state_dict())
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    copy_on(classifier, torch.device("cpu")).network.to(torch.bfloat16)
    for name, value in classifier.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
