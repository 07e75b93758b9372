"""Heads on frozen features, and a head back in its network."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.errors import InputError
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.networks.zoo import features as network_features
from models.statistics.metrics import auc
from tests.models.synthetic import blob_films, small_spec
from tuning.training.features import Features, compute_features
from tuning.training.head_settings import HeadSettings
from tuning.training.heads import fit_head, install_head


@pytest.fixture(autouse=True, scope="module")
def _one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(films: int, width: int, *, seed: int = 0, shift: float = 0.8) -> Features:
    """Features of which some tell the classes apart, each of a scale and mean of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(films) % 2
    values = rng.normal(size=(films, width))
    values[:, : width // 4] += shift * labels[:, None]
    scale, mean = np.random.default_rng(99).uniform(0.1, 20, (2, width))
    return Features(values=(values * scale + mean).astype(np.float32), labels=labels.astype(np.int64))


def exclusive_or(films: int, *, seed: int) -> Features:
    """Disease where the first two features have one sign: nothing for a single layer."""
    values = np.random.default_rng(seed).normal(size=(films, 6)).astype(np.float32)
    return Features(values=values, labels=(values[:, 0] * values[:, 1] > 0).astype(np.int64))


def test_logistic_head_is_that_of_scikit_learn() -> None:
    train, val = noise(400, 24), noise(300, 24, seed=1)
    settings = HeadSettings(l2=0.05, steps=500)
    fitted = fit_head(train, val, settings)
    mean, deviation = train.values.mean(axis=0), train.values.std(axis=0)
    # two rows of weights share the penalty of one, w / 2 each: l2 / 2 (|w/2|^2 + |w/2|^2) = l2 / 4 |w|^2
    reference = LogisticRegression(C=2 / (settings.l2 * len(train)), tol=1e-8, max_iter=1000)
    reference.fit((train.values - mean) / deviation, train.labels)
    expected = reference.decision_function((val.values - mean) / deviation)
    found = fitted.val_logits[:, 1] - fitted.val_logits[:, 0]
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert fitted.val_auc == auc(val.labels, found) > 0.8


def test_hidden_layer_learns_what_one_layer_cannot() -> None:
    train, val = exclusive_or(600, seed=0), exclusive_or(400, seed=1)
    assert fit_head(train, val, HeadSettings(hidden=16, l2=1e-3, steps=200)).val_auc > 0.95
    assert fit_head(train, val, HeadSettings()).val_auc < 0.65


def test_hidden_layer_sees_the_axes_of_wide_features() -> None:
    train, val = noise(400, 200, shift=0.3), noise(300, 200, seed=1, shift=0.3)
    hidden = fit_head(train, val, HeadSettings(hidden=4, l2=0.3))
    assert hidden.head.layers[0][0].shape == (4, 200)
    assert hidden.val_auc > 0.9


def test_same_arguments_same_head_and_the_callers_generator_is_left_alone() -> None:
    train, val = noise(80, 12), noise(60, 12, seed=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fit_head(train, val, HeadSettings(hidden=4, steps=20))
    assert torch.equal(torch.rand(1), expected)
    with torch.inference_mode():  # callers are often in it
        second = fit_head(train, val, HeadSettings(hidden=4, steps=20))
    np.testing.assert_array_equal(first.val_logits, second.val_logits)
    other = fit_head(train, val, HeadSettings(hidden=4, steps=20, seed=1))
    assert not np.array_equal(first.val_logits, other.val_logits)


def test_features_that_never_vary_count_for_nothing() -> None:
    train, val = noise(200, 12), noise(100, 12, seed=1)
    usual = fit_head(train, val, HeadSettings())
    constant = np.full((200, 2), 3.0, dtype=np.float32)
    wild = np.full((100, 2), 1e6, dtype=np.float32)
    more = Features(values=np.hstack([train.values, constant]), labels=train.labels)
    found = fit_head(more, Features(values=np.hstack([val.values, wild]), labels=val.labels), HeadSettings())
    np.testing.assert_allclose(found.val_logits, usual.val_logits, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "size"),
    [("cnn", 32), ("mlp", 32), ("mobilenetv2_035", 32), ("resnet10t", 32), ("vit_tiny_patch16_224", 32)],
)
def test_network_with_the_head_computes_what_the_head_computes(name: str, size: int) -> None:
    torch.manual_seed(0)
    spec = small_spec(name, size)
    network, films = build(spec).eval(), blob_films(40)
    values = compute_features(network, spec.preprocessing, films.pixels)
    known = Features(values=values, labels=films.labels)
    fitted = fit_head(known, known, HeadSettings(steps=10))
    install_head(network, fitted.head)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(films.pixels)
        torch.testing.assert_close(
            torch.from_numpy(values),
            network_features(classifier.network, classifier.preprocess(pixels)).flatten(1),
            rtol=1e-3,
            atol=1e-4,
        )
        logits = classifier.logits(pixels).numpy()
    np.testing.assert_allclose(logits, fitted.val_logits, rtol=1e-3, atol=2e-3)
    assert np.ptp(logits[:, 1] - logits[:, 0]) > 0.05


def test_heads_that_do_not_fit_a_network_are_refused() -> None:
    network = build(small_spec("cnn", depth=2, width=8)).eval()
    train = noise(60, 16)
    with pytest.raises(InputError, match=r"hidden layer does not fit into the classifier.*choose hidden=0"):
        install_head(network, fit_head(train, train, HeadSettings(hidden=4, steps=2)).head)
    other = noise(60, 12)
    with pytest.raises(
        InputError, match=r"head of \[2, 12\] does not fit the network's classifier \[\[2, 16\], \[2\]\]"
    ):
        install_head(network, fit_head(other, other, HeadSettings(steps=2)).head)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": -1}, "hidden=-1 is out of range"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"l2": -0.1}, r"l2=-0.1 is out of range"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        HeadSettings(**change)  # type: ignore[arg-type]


def test_features_of_two_networks_or_of_one_class_are_refused() -> None:
    with pytest.raises(InputError, match="features of 8 and of 12 numbers are not of one network"):
        fit_head(noise(20, 8), noise(20, 12), HeadSettings())
    only = noise(20, 8)
    with pytest.raises(InputError, match="no validation films of class 1"):
        fit_head(only, Features(values=only.values[::2], labels=only.labels[::2]), HeadSettings())
