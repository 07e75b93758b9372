import sys
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.engines.allocator import keep_memory
from models.errors import InputError, RayscanError
from models.films import Films
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build, layer_groups
from models.spec import ModelSpec, Preprocessing
from models.statistics.metrics import auc
from tests.models.synthetic import blob_films, small_spec
from tuning.training.loop import EpochReport, Fitted, StateDict, TrainSettings, fit

TRAIN, VAL = blob_films(96), blob_films(48, seed=1)
QUICK = TrainSettings(epochs=2, batch_size=16, device="cpu", threads=1)


def same(first: Fitted, second: Fitted) -> bool:
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


@pytest.mark.parametrize(("optimiser", "rate"), [("adamw", 3e-3), ("nadam", 3e-3), ("sgd", 3e-2), ("rmsprop", 1e-3)])
def test_training_learns_a_trivial_problem(optimiser: str, rate: float) -> None:
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
        ({"optimiser": "adam"}, "unknown optimiser 'adam'; choose adamw or sgd or rmsprop or nadam"),
        ({"loss": "hinge"}, "unknown loss"),
        ({"class_weighting": "auto"}, "unknown class_weighting"),
        ({"augment": 9.0}, "augmentation strength"),
        ({"schedule": "linear"}, "unknown schedule"),
        ({"sampling": "weighted"}, "unknown sampling"),
        ({"sampling": "balanced", "class_weighting": "balanced"}, "choose one of the two"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"mixup": -0.1}, "mixup=-0.1"),
        ({"patience": -1}, "patience=-1"),
        ({"rate_decay": 0.0}, "rate_decay=0.0"),
        ({"jpeg": 2.0}, "jpeg=2.0"),
        ({"operations": 50}, "operations=50"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainSettings(**change)  # type: ignore[arg-type]


def test_every_option_at_once_learns() -> None:
    settings = replace(
        QUICK,
        epochs=10,
        learning_rate=5e-3,
        schedule="cosine",
        ema=0.9,
        mixup=0.2,
        cutmix=0.5,
        sampling="balanced",
        loss="focal",
        label_smoothing=0.02,
        blur=0.2,
        elastic=0.2,
        jpeg=0.2,
        shrink=0.2,
        cutout=0.2,
        rate_decay=0.9,
    )
    assert fit(small_spec(), TRAIN, VAL, settings).best.val_auc > 0.97


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": 1.0, "mixup": 0.4, "label_smoothing": 0.1},
        {"class_weighting": "balanced", "loss": "focal", "cutmix": 1.0},
    ],
)
def test_accumulated_batches_are_one_large_batch(changes: dict[str, Any]) -> None:
    films = TRAIN.labels.argsort()[:80]  # 48 healthy, 32 diseased
    unequal = taken(TRAIN, films)
    spec = small_spec("mlp", width=16, dropout=0.0)
    settings = replace(QUICK, optimiser="sgd", learning_rate=0.05, **changes)
    large = fit(spec, unequal, VAL, replace(settings, batch_size=40))
    small = fit(spec, unequal, VAL, replace(settings, batch_size=8, accumulate=5))
    for name, value in large.state_dict.items():
        torch.testing.assert_close(small.state_dict[name], value, rtol=1e-4, atol=1e-6)
    assert small.history[-1].train_loss == pytest.approx(large.history[-1].train_loss, rel=1e-4)


def test_averaged_weights_are_what_is_judged_and_kept() -> None:
    spec = small_spec()
    plain, averaged = (fit(spec, TRAIN, VAL, replace(QUICK, ema=ema)) for ema in (0.0, 0.9))
    assert [report.train_loss for report in plain.history] == [report.train_loss for report in averaged.history]
    assert not same(plain, averaged)
    network = build(spec)
    network.load_state_dict(averaged.state_dict)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network).eval()
    with torch.inference_mode():
        logits = classifier.logits(torch.from_numpy(VAL.pixels)).numpy()
    assert np.abs(logits - averaged.val_logits).max() < 1e-4


def test_training_stops_when_it_gets_no_better() -> None:
    # steps too small to change a float32: every epoch is as good as the first
    settings = replace(QUICK, epochs=9, learning_rate=1e-12, weight_decay=0, patience=3)
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, settings)
    assert len(fitted.history) == 4
    assert fitted.best.epoch == 1


def test_clipping_shortens_the_step() -> None:
    spec = small_spec("mlp", width=8, dropout=0.0)
    start = fit(spec, TRAIN, VAL, replace(QUICK, epochs=1, learning_rate=1e-12, weight_decay=0)).state_dict

    def moved(clip_norm: float) -> float:
        settings = TrainSettings(
            epochs=1,
            batch_size=96,
            optimiser="sgd",
            schedule="constant",
            warm_up=0,
            learning_rate=1.0,
            weight_decay=0,
            clip_norm=clip_norm,
            device="cpu",
            threads=1,
        )
        after = fit(spec, TRAIN, VAL, settings).state_dict
        return float(torch.cat([(after[name] - start[name]).flatten() for name in start]).norm())

    # Nesterov's first step is 1.9 gradients long
    assert moved(0.01) == pytest.approx(1.9 * 0.01, rel=1e-2)
    assert moved(0) > 0.1


def test_frozen_layers_stay_as_the_given_weights_have_them() -> None:
    spec = small_spec()
    source = fit(spec, TRAIN, VAL, replace(QUICK, seed=7)).state_dict
    settings = replace(QUICK, frozen_groups=2, learning_rate=1e-2)
    fitted = fit(spec, TRAIN, VAL, settings, weights=source)
    network = build(spec)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    frozen = {names[id(parameter)] for group in layer_groups(network)[:2] for parameter in group}
    modules = {name.rpartition(".")[0] for name in frozen}
    for name, value in fitted.state_dict.items():
        still = name.rpartition(".")[0] in modules
        assert torch.equal(value, source[name]) == still, name


def test_gradual_unfreezing_moves_deep_layers_first() -> None:
    spec = small_spec()
    network = build(spec)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group] for group in layer_groups(network)]
    states: list[StateDict] = []

    def keep(report: EpochReport, state: Any) -> bool:
        states.append(state())
        return True

    fit(spec, TRAIN, VAL, replace(QUICK, epochs=len(groups), unfreeze_every=1), keep)
    for epoch in range(1, len(groups)):
        before, after = states[epoch - 1], states[epoch]
        moved = [any(not torch.equal(before[name], after[name]) for name in group) for group in groups]
        assert moved == [depth >= len(groups) - 1 - epoch for depth in range(len(groups))]


def taken(films: Films, index: Any) -> Films:
    names = ("pixels", "labels", "patients", "subtypes", "scan_ids")
    return Films(**{name: getattr(films, name)[index] for name in names})


def three_classes(count: int, seed: int = 0) -> Films:
    """None, a bright blob, and a very bright one."""
    films = blob_films(count, seed=seed, contrast=60)
    labels = films.labels * (1 + (np.arange(count) % 4 == 3))
    pixels = films.pixels.copy()
    for index in np.flatnonzero(labels == 2):
        pixels[index][pixels[index] > 125] += np.uint8(60)
    return replace(films, pixels=pixels, labels=labels)


def test_three_classes_are_judged_as_disease_against_none() -> None:
    spec = ModelSpec(
        name="cnn",
        parameters={"depth": 2, "width": 8, "dropout": 0.0},
        classes=("NORMAL", "BACTERIA", "VIRUS"),
        preprocessing=Preprocessing(size=32, normalise="unit"),
    )
    train, val = three_classes(192), three_classes(96, seed=1)
    settings = replace(QUICK, learning_rate=5e-3, augment=0.0, mixup=0.1, class_weighting="balanced")
    diseased = (val.labels > 0).astype(np.int64)

    early = fit(spec, train, val, replace(settings, epochs=1))
    assert early.val_logits.shape == (96, 3)
    probability = torch.softmax(torch.from_numpy(early.val_logits).double(), dim=1).numpy()
    assert early.best.val_auc == pytest.approx(auc(diseased, 1 - probability[:, 0]))
    assert early.best.val_auc != pytest.approx(auc(diseased, early.val_logits[:, 1] - early.val_logits[:, 0]))

    late = fit(spec, train, val, replace(settings, epochs=12))
    assert late.best.val_auc > 0.97
    # each disease is told from the other, too: it is no binary model with a spare output
    assert (late.val_logits.argmax(axis=1) == val.labels).mean() > 0.85


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_allocator_is_set_where_it_is_glibc() -> None:
    import os

    assert keep_memory() == (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
