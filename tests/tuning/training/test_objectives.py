"""What a search looks for, against plain definitions."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.networks.classifier import in_batches, trained_classifier
from models.spec import ModelSpec, Preprocessing
from models.statistics.calibration import disease_log_odds, fit_calibration
from models.statistics.metrics import auc
from models.statistics.robustness import CHANGES, perturbed
from pipelines.ingest.dataset import load_films
from tests.tuning.films import SIZE, write_dataset
from tuning.training.loop import EpochReport, EpochState, TrainSettings, fit
from tuning.training.objectives import (
    latency_limit,
    log_score,
    pareto_front,
    parse_objective,
    parse_objectives,
    sensitivity_at,
)

scores = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@settings(deadline=None)
@given(healthy=scores, diseased=scores, specificity=st.floats(0.01, 0.99))
def test_sensitivity_is_the_best_of_all_thresholds_that_keep_the_floor(
    healthy: list[int], diseased: list[int], specificity: float
) -> None:
    labels = np.array([0] * len(healthy) + [1] * len(diseased))
    score = np.array(healthy + diseased, dtype=np.float32)
    allowed = [cut for cut in range(-1, 11) if (np.array(healthy) <= cut).mean() >= specificity]
    best = max((np.array(diseased) > cut).mean() for cut in allowed)
    assert sensitivity_at(labels, score, specificity=specificity) == best


def test_a_floor_that_falls_on_a_film_is_kept_and_no_more() -> None:
    labels, score = np.array([0] * 10 + [1] * 4), np.array([*range(10), 8.5, 9.5, 0, 3])
    assert sensitivity_at(labels, score, specificity=0.9) == 0.5


@settings(deadline=None)
@given(points=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=10))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points, parse_objectives(["latency", "auc"]))
    for place, (value, cost) in enumerate(points):
        beaten = any(a >= value and b <= cost and (a, b) != (value, cost) for a, b in points)
        assert (place in front) != beaten


def test_the_objective_of_the_films_comes_first() -> None:
    assert [one.name for one in parse_objectives(["latency", "sensitivity@specificity=0.95"])] == [
        "sensitivity@specificity=0.95",
        "latency",
    ]
    found = parse_objective("sensitivity@specificity=0.5").judge
    assert found is not None
    assert found(np.array([0, 0, 1]), np.array([0.1, 0.6, 0.5]), None) == 1.0
    judge = parse_objective("auc").judge
    assert judge is not None
    labels, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.9], dtype=np.float32)
    assert judge(labels, score, None) == auc(labels, score) == 0.75


@settings(deadline=None)
@given(healthy=scores, diseased=scores, copied=st.booleans())
def test_the_log_score_is_the_mean_logarithm_of_calibrated_probabilities(
    healthy: list[int], diseased: list[int], copied: bool
) -> None:
    labels = np.array([0] * len(healthy) + [1] * len(diseased))
    odds = np.array(healthy + diseased, dtype=np.float32) - 4
    logits = np.stack([np.zeros_like(odds), odds], axis=1)
    calibration = fit_calibration(logits, labels, "platt")

    def plain(of: npt.NDArray[np.float32]) -> float:
        right = calibration.probabilities(np.stack([np.zeros_like(of), of], axis=1))[np.arange(len(of)), labels]
        return float(np.log(right.astype(np.float64)).mean())

    if not copied:
        assert log_score(labels, odds) == pytest.approx(plain(odds), abs=1e-5)
        return
    copies = np.repeat([False, True], len(labels))
    found = log_score(np.tile(labels, 2), np.concatenate([odds, odds / 2]), copies)
    assert found == pytest.approx((plain(odds) + plain(odds / 2)) / 2, abs=1e-5)


def test_a_limit_of_the_latency_is_no_objective() -> None:
    assert [one.name for one in parse_objectives(["auc", "latency<=2.5"])] == ["auc"]
    assert latency_limit(["auc", "latency<=2.5", "latency<=4"]) == 2.5
    assert latency_limit(["auc", "latency"]) is None


@pytest.mark.parametrize(
    "names",
    [
        ["accuracy"],
        ["sensitivity@specificity=1.0"],
        ["sensitivity@specificity=2"],
        ["latency"],
        ["latency<=3"],
        ["auc", "latency<=fast"],
        [],
        ["auc", "sensitivity@specificity=0.9"],
    ],
)
def test_what_cannot_be_an_objective(names: list[str]) -> None:
    with pytest.raises(InputError, match="objective"):
        parse_objectives(names)


def test_an_epoch_is_judged_by_perturbed_copies_too(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), films=140)
    train, val = (load_films(str(tmp_path), split) for split in ("train", "val"))
    spec = ModelSpec(name="mlp", parameters={"width": 8, "layers": 1}, preprocessing=Preprocessing(size=SIZE))
    left: list[npt.NDArray[np.float32]] = []

    def keep(report: EpochReport, state: EpochState) -> bool:
        left.append(state.best_logits)
        return True

    fitted = fit(spec, train, val, TrainSettings(epochs=3, augment=0.0, objective="log_score"), keep)
    assert fitted.val_logits.shape == (len(val), 2)
    classifier = trained_classifier(spec, fitted.state_dict)
    copies = [perturbed(val.pixels, change) for change in CHANGES]  # there are few films: all are copied
    odds = [disease_log_odds(in_batches(classifier.logits, films).numpy()) for films in (val.pixels, *copies)]
    is_copy = np.arange(len(val) * (1 + len(copies))) >= len(val)
    wanted = log_score(np.tile(val.labels, 1 + len(copies)), np.concatenate(odds), is_copy)
    assert fitted.best.objective == pytest.approx(wanted, abs=1e-5)
    assert disease_log_odds(left[-1]) == pytest.approx(np.concatenate(odds), abs=1e-4)
    assert (left[-1][: len(val)] == fitted.val_logits).all()
    assert fitted.best.objective == max(report.objective or -9 for report in fitted.history)
    assert fitted.best.val_auc == auc(val.labels, disease_log_odds(fitted.val_logits))


def test_the_epoch_of_the_best_objective_is_kept(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), films=140)
    train, val = (load_films(str(tmp_path), split) for split in ("train", "val"))
    spec = ModelSpec(name="mlp", parameters={"width": 8, "layers": 1}, preprocessing=Preprocessing(size=SIZE))
    name = "sensitivity@specificity=0.6"
    fitted = fit(spec, train, val, TrainSettings(epochs=4, augment=0.0, objective=name))
    reached = sensitivity_at(val.labels, disease_log_odds(fitted.val_logits), specificity=0.6)
    assert fitted.best.objective == reached == max(report.objective or 0 for report in fitted.history)
    assert fitted.best == max(fitted.history, key=lambda report: report.quality)
    with pytest.raises(InputError, match="an epoch cannot be judged by latency"):
        TrainSettings(objective="latency")
