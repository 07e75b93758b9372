"""Frozen features: the same as scoring sees, computed once; heads on them, and a head back in its network."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression

from models.errors import InputError
from models.films import joined
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec, Preprocessing
from models.statistics.metrics import auc
from pipelines.errors import NotFoundError
from pipelines.ingest.dataset import load_films
from pipelines.ingest.patients import kermany_patient
from pipelines.ingest.split import split_patients
from pipelines.storage import open_store
from tests.models.synthetic import blob_films, small_spec
from tests.tuning.films import write_dataset
from tuning.training.features import (
    KEPT,
    Features,
    HeadSettings,
    SplitFeatures,
    compute_features,
    dataset_features,
    features_of,
    fit_head,
    install_head,
    pretrained_network,
)

WEIGHTS = os.environ.get("RAYSCAN_REAL_WEIGHTS")


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
        torch.testing.assert_close(torch.from_numpy(values), classifier.features(pixels), rtol=1e-3, atol=1e-4)
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


def test_networks_without_features_are_refused() -> None:
    spec = small_spec("majority")
    with pytest.raises(InputError, match="no features before its classifier"):
        compute_features(build(spec), spec.preprocessing, blob_films(4).pixels)


def test_threads_are_the_callers_again_afterwards() -> None:
    spec, films = small_spec(), blob_films(20)
    network = build(spec).eval()
    two = compute_features(network, spec.preprocessing, films.pixels, threads=2)
    assert torch.get_num_threads() == 1
    np.testing.assert_allclose(two, compute_features(network, spec.preprocessing, films.pixels), rtol=1e-4, atol=1e-5)


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


class Cache:
    """A prepared data set, and the features of a network on it."""

    def __init__(self, folder: Path) -> None:
        self.dataset, self.folder = str(folder / "dataset"), folder / "features"
        write_dataset(self.dataset, films=70)
        self.spec = small_spec()
        torch.manual_seed(0)
        self.network = build(self.spec).eval()

    def read(self, split: str = "train", spec: ModelSpec | None = None) -> SplitFeatures:
        return dataset_features(self.dataset, split, spec or self.spec, self.network, str(self.folder))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_features_are_computed_once_and_read_again_without_the_films(cache: Cache) -> None:
    first = cache.read()
    films = load_films(cache.dataset, "train")
    np.testing.assert_array_equal(first.scan_ids, films.scan_ids)
    classifier = ScanClassifier(Preprocess(cache.spec.preprocessing), cache.network).eval()
    with torch.inference_mode():
        expected = classifier.features(torch.from_numpy(films.pixels)).numpy()
    np.testing.assert_allclose(first.values, expected, rtol=1e-3, atol=1e-4)
    assert first.values.dtype == np.float32
    open_store(cache.dataset).delete("blobs-train.parquet")  # whoever reads the films again fails now
    again = cache.read()
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.scan_ids, first.scan_ids)
    assert len(cache.files()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps of a process are Linux's")
def test_features_are_the_files_own_memory(cache: Cache) -> None:
    values = cache.read().values
    address = values.__array_interface__["data"][0]
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "features-" in line
    ]
    assert any(low <= address and address + values.nbytes <= high for low, high in ranges)


def _another_split(cache: Cache) -> None:
    cache.read("val")


def _another_size(cache: Cache) -> None:
    preprocessing = Preprocessing(size=24, decoded_size=32)
    cache.read(spec=ModelSpec(name="cnn", parameters=cache.spec.parameters, preprocessing=preprocessing))


def _other_weights(cache: Cache) -> None:
    with torch.no_grad():
        next(cache.network.parameters()).mul_(1.001)
    cache.read()


def _other_statistics(cache: Cache) -> None:
    next(buffer for name, buffer in cache.network.named_buffers() if name.endswith("running_mean")).add_(0.1)
    cache.read()


def _another_dataset(cache: Cache) -> None:
    write_dataset(cache.dataset, films=70, seed=1, fingerprint="others")
    cache.read()


@pytest.mark.parametrize("change", [_another_split, _another_size, _other_weights, _other_statistics, _another_dataset])
def test_whatever_determines_features_has_its_own_file(cache: Cache, change: Callable[[Cache], None]) -> None:
    cache.read()
    change(cache)
    assert len(cache.files()) == 2


def test_classifier_does_not_determine_features(cache: Cache) -> None:
    splits = [cache.read(split) for split in ("train", "val")]
    train, val = (features_of(load_films(cache.dataset, split), splits) for split in ("train", "val"))
    install_head(cache.network, fit_head(train, val, HeadSettings(steps=5)).head)
    cache.read()
    assert len(cache.files()) == 2  # of train and of val


def test_films_have_their_own_features_and_labels_whatever_split_they_stand_in(cache: Cache) -> None:
    splits = [cache.read(split) for split in ("train", "val")]
    films = [load_films(cache.dataset, split) for split in ("train", "val")]
    some = joined(films).take(np.array([9, 2, 60, 33]))
    some = replace(some, labels=np.array([2, 0, 1, 2]))
    found = features_of(some, splits)
    np.testing.assert_array_equal(found.labels, [2, 0, 1, 2])
    expected = compute_features(cache.network, cache.spec.preprocessing, some.pixels)
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-4)
    strange = replace(some, scan_ids=np.array(["a", "b", "c", "z"]))
    with pytest.raises(InputError, match="the kept features are of other films; empty the folder `features`"):
        features_of(strange, splits)


def test_of_many_files_those_used_last_stay(cache: Cache) -> None:
    cache.read()
    (first,) = cache.files()
    for number in range(KEPT - 1):
        path = cache.folder / f"features-{number}.safetensors"
        path.touch()
        os.utime(path, (0, number))
    os.utime(cache.folder / first, (0, 0))
    cache.read()  # used again, so the last to go
    cache.read("val")
    assert len(cache.files()) == KEPT
    assert first in cache.files()
    assert "features-0.safetensors" not in cache.files()


def test_spoilt_file_says_to_remove_it(cache: Cache) -> None:
    cache.read()
    path = cache.folder / cache.files()[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"features-\w+.safetensors is not a file of features; remove it"):
        cache.read()


def test_films_of_another_size_and_folders_elsewhere_are_refused(cache: Cache) -> None:
    with pytest.raises(InputError, match="holds films of 32 pixels decoded by dct, the model takes 64"):
        cache.read(spec=small_spec(size=64))
    with pytest.raises(InputError, match="not a local folder"):
        dataset_features(cache.dataset, "train", cache.spec, cache.network, "s3://bucket/features")


def test_network_takes_weights_at_a_path(tmp_path: Path) -> None:
    spec = small_spec()
    original = build(spec)
    path = tmp_path / "it.safetensors"
    safetensors.torch.save_file(original.state_dict(), path)
    network, loaded = pretrained_network(spec, str(path))
    assert loaded.classifier
    assert not network.training
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in original.state_dict().items())
    with pytest.raises(NotFoundError, match="no such object"):
        pretrained_network(spec, str(tmp_path / "other.safetensors"))


@pytest.mark.skipif(not WEIGHTS, reason="RAYSCAN_REAL_WEIGHTS names no folder of real weights")
def test_features_of_imagenet_tell_real_films_apart(real_data: Path) -> None:
    from PIL import Image

    folders = [real_data / "kermany_224/train" / name for name in ("NORMAL", "PNEUMONIA")]
    paths = [sorted(folder.iterdir())[::step] for folder, step in zip(folders, (13, 38), strict=True)]
    labels = np.repeat([0, 1], [len(some) for some in paths]).astype(np.int64)
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for some in paths for path in some])
    spec = ModelSpec(name="mobilenetv2_035", preprocessing=Preprocessing(size=224, normalise="symmetric"))
    file = f"{WEIGHTS}/mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
    network, _ = pretrained_network(spec, file, scale="symmetric")
    values = compute_features(network, spec.preprocessing, pixels)
    patients = [kermany_patient(path.name) or path.name for some in paths for path in some]
    strata = [str(label) for label in labels]
    side = np.array(split_patients(patients, strata, fractions={"train": 0.5, "val": 0.5}, seed=0))
    train, val = (Features(values=values[side == name], labels=labels[side == name]) for name in ("train", "val"))
    assert fit_head(train, val, HeadSettings(l2=0.1)).val_auc > 0.95
