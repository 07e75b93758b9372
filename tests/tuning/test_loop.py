import sys
import warnings

import numpy as np
import pytest
import torch

from models.allocator import keep_memory
from models.classifier import ScanClassifier
from models.errors import InputError, RayscanError
from models.films import Films
from models.preprocess import Preprocess
from models.zoo import build
from tests.models.synthetic import blob_films, small_spec
from tuning.loop import EpochReport, Fitted, StateDict, TrainSettings, fit

TRAIN, VAL = blob_films(96), blob_films(48, seed=1)
QUICK = TrainSettings(epochs=2, batch_size=16, device="cpu", threads=1)


def same(first: Fitted, second: Fitted) -> bool:
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_training_learns_a_trivial_problem(optimiser: str) -> None:
    rate = 3e-3 if optimiser == "adamw" else 3e-2
    settings = TrainSettings(
        epochs=8,
        batch_size=16,
        learning_rate=rate,
        optimiser=optimiser,  # type: ignore[arg-type]
        augment=0.3,
        class_weighting="balanced",
        label_smoothing=0.05,
        device="cpu",
        threads=1,
    )
    fitted = fit(small_spec(), TRAIN, VAL, settings)
    assert fitted.best.val_auc > 0.99
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert [report.epoch for report in fitted.history] == list(range(1, 9))


def test_same_seed_same_weights_and_another_seed_others() -> None:
    spec = small_spec("cnn", depth=2, width=8, dropout=0.2)
    first = fit(spec, TRAIN, VAL, QUICK)
    torch.manual_seed(99)  # the caller's generator must not matter
    assert same(first, fit(spec, TRAIN, VAL, QUICK))
    other = TrainSettings(epochs=2, batch_size=16, device="cpu", threads=1, seed=1)
    assert not same(first, fit(spec, TRAIN, VAL, other))


def test_training_leaves_the_callers_generator_and_threads_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    fit(small_spec("mlp", width=8), TRAIN, VAL, QUICK)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_logits_are_those_of_the_kept_weights() -> None:
    fitted = fit(small_spec(), TRAIN, VAL, TrainSettings(epochs=4, batch_size=16, device="cpu", threads=1))
    network = build(fitted.spec)
    network.load_state_dict(fitted.state_dict)
    classifier = ScanClassifier(Preprocess(fitted.spec.preprocessing), network).eval()
    with torch.inference_mode():
        logits = classifier.logits(torch.from_numpy(VAL.pixels)).numpy()
    assert np.abs(logits - fitted.val_logits).max() < 1e-4
    best = max(fitted.history, key=lambda report: (report.val_auc, -report.val_loss))
    assert fitted.best == best


def test_films_are_shrunk_as_scoring_shrinks_them() -> None:
    large_train, large_val = blob_films(32, size=64), blob_films(16, seed=1, size=64)
    fitted = fit(small_spec(), large_train, large_val, QUICK)
    network = build(fitted.spec)
    network.load_state_dict(fitted.state_dict)
    classifier = ScanClassifier(Preprocess(fitted.spec.preprocessing), network).eval()
    with torch.inference_mode():
        logits = classifier.logits(torch.from_numpy(large_val.pixels)).numpy()
    assert np.abs(logits - fitted.val_logits).max() < 1e-4


def test_read_only_films_are_trained_on_without_a_warning() -> None:
    def locked(films: Films) -> Films:
        pixels, labels = films.pixels.view(), films.labels.view()
        pixels.flags.writeable = labels.flags.writeable = False
        return Films(
            pixels=pixels,
            labels=labels,
            patients=films.patients,
            subtypes=films.subtypes,
            scan_ids=films.scan_ids,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        locked_fit = fit(small_spec(), locked(TRAIN), locked(VAL), QUICK)
    assert same(locked_fit, fit(small_spec(), TRAIN, VAL, QUICK))


def test_majority_goes_through_the_same_door() -> None:
    fitted = fit(small_spec("majority"), TRAIN, VAL, QUICK)
    assert fitted.best.val_auc == 0.5
    assert len(fitted.history) == 1
    assert fitted.val_logits.shape == (48, 2)


def test_callback_sees_each_epoch_and_may_stop() -> None:
    seen: list[tuple[EpochReport, StateDict]] = []

    def on_epoch(report: EpochReport, state: object) -> bool:
        seen.append((report, state()))  # type: ignore[operator]
        return report.epoch < 2

    settings = TrainSettings(epochs=5, batch_size=16, device="cpu", threads=1)
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, settings, on_epoch)
    assert [report.epoch for report, _ in seen] == [1, 2]
    assert tuple(report for report, _ in seen) == fitted.history
    chosen = seen[fitted.best.epoch - 1][1]
    assert all(torch.equal(value, chosen[name]) for name, value in fitted.state_dict.items())


def test_divergence_stops_with_the_mend() -> None:
    # a decay of 10 at a rate of 10 multiplies the weights by 99 at each step
    settings = TrainSettings(
        epochs=200, batch_size=16, learning_rate=10, weight_decay=10, optimiser="sgd", device="cpu", threads=1
    )
    with pytest.raises(RayscanError, match=r"training of mlp diverged.*lower the learning rate \(10\)"):
        fit(small_spec("mlp", layers=0), TRAIN, VAL, settings)


def test_fewer_films_than_a_batch() -> None:
    fitted = fit(small_spec(), blob_films(6), VAL, TrainSettings(epochs=1, device="cpu", threads=1))
    assert len(fitted.history) == 1


def test_focal_loss_trains() -> None:
    settings = TrainSettings(epochs=2, batch_size=16, loss="focal", device="cpu", threads=1)
    assert fit(small_spec(), TRAIN, VAL, settings).history[-1].train_loss < 0.3


def test_films_of_one_class_are_refused() -> None:
    only = VAL.labels == 1
    healthy_missing = Films(
        pixels=VAL.pixels[only],
        labels=VAL.labels[only],
        patients=VAL.patients[only],
        subtypes=VAL.subtypes[only],
        scan_ids=VAL.scan_ids[only],
    )
    with pytest.raises(InputError, match="no validation films of class NORMAL"):
        fit(small_spec(), TRAIN, healthy_missing, QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"optimiser": "adam"}, "unknown optimiser 'adam'; choose adamw or sgd"),
        ({"loss": "hinge"}, "unknown loss"),
        ({"class_weighting": "auto"}, "unknown class_weighting"),
        ({"augment": 9.0}, "augmentation strength"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainSettings(**change)  # type: ignore[arg-type]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_allocator_is_set_where_it_is_glibc() -> None:
    import os

    assert keep_memory() == (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
