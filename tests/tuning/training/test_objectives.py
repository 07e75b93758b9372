"""What a search looks for, against plain definitions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError
from models.spec import ModelSpec, Preprocessing
from models.statistics.calibration import disease_log_odds
from models.statistics.metrics import auc
from pipelines.ingest.dataset import load_films
from tests.tuning.films import SIZE, write_dataset
from tuning.training.loop import TrainSettings, fit
from tuning.training.objectives import pareto_front, parse_objective, parse_objectives, sensitivity_at

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
    assert found(np.array([0, 0, 1]), np.array([0.1, 0.6, 0.5])) == 1.0
    judge = parse_objective("auc").judge
    assert judge is not None
    labels, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.9], dtype=np.float32)
    assert judge(labels, score) == auc(labels, score) == 0.75


@pytest.mark.parametrize(
    "names", [["accuracy"], ["sensitivity@specificity=1.0"], ["sensitivity@specificity=2"], ["latency"], [],
              ["auc", "sensitivity@specificity=0.9"]],
)  # fmt: skip
def test_what_cannot_be_an_objective(names: list[str]) -> None:
    with pytest.raises(InputError, match="objective"):
        parse_objectives(names)


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
