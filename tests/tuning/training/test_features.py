"""Frozen features: the same as those of scoring, computed once."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.errors import InputError
from models.films import join_films
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.networks.zoo import features as network_features
from models.spec import ModelSpec, Preprocessing
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
    SplitFeatures,
    compute_features,
    dataset_features,
    features_of,
    on_device,
    pretrained_network,
)
from tuning.training.head_settings import HeadSettings
from tuning.training.heads import fit_head, install_head

WEIGHTS = os.environ.get("RAYSCAN_REAL_WEIGHTS")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():  # type: ignore[no-untyped-def]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_on_a_device_features_are_those_of_the_cpus_threads() -> None:
    """What a GPU does; the network that it copies stays where it was."""
    spec, films = small_spec(), blob_films(70)
    network = build(spec).eval()
    there = on_device(network, Preprocess(spec.preprocessing), films.pixels, torch.device("cpu"))
    np.testing.assert_allclose(there, compute_features(network, spec.preprocessing, films.pixels), rtol=1e-4, atol=1e-5)


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
        expected = (
            network_features(classifier.network, classifier.preprocess(torch.from_numpy(films.pixels)))
            .flatten(1)
            .numpy()
        )
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
    some = join_films(films).take(np.array([9, 2, 60, 33]))
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
    with pytest.raises(InputError, match="holds films of 32 pixels decoded by reduced, the model takes 64"):
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
