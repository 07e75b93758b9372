"""Figures against scikit-learn, and intervals against what they promise: to hold the truth 95 times in 100."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from models.errors import InputError
from models.statistics.bootstrap import count_patients, draws, figures, intervals, predictive_values
from models.statistics.metrics import auc, ece, wilson


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Labels of both classes, probabilities with ties, a threshold that is one of them or not, whole weights."""
    films = draw(st.integers(4, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, 2, films)
    labels[:2] = 0, 1
    probability = (rng.integers(0, draw(st.integers(1, 40)), films) / 40).astype(np.float32)
    weights = rng.integers(0, 4, films).astype(float)
    weights[:2] += 1
    return labels, probability, float(rng.choice(probability)), weights


@given(judged())
@settings(max_examples=200, deadline=None)
def test_figures_are_scikit_learns(case: tuple[np.ndarray, np.ndarray, float, np.ndarray]) -> None:
    labels, probability, threshold, weights = case
    found = {name: value[0] for name, value in figures(labels, probability, threshold, weights[None]).items()}
    called = probability >= threshold
    weighted = {"sample_weight": weights}
    expected = {
        "auc": oracle.roc_auc_score(labels, probability, **weighted),
        "average_precision": oracle.average_precision_score(labels, probability, **weighted),
        "accuracy": oracle.accuracy_score(labels, called, **weighted),
        "balanced_accuracy": oracle.balanced_accuracy_score(labels, called, **weighted),
        "sensitivity": oracle.recall_score(labels, called, **weighted),
        "specificity": oracle.recall_score(labels, called, pos_label=0, **weighted),
        "f1": oracle.f1_score(labels, called, **weighted),
        "mcc": oracle.matthews_corrcoef(labels, called, **weighted),
        "brier": oracle.brier_score_loss(labels, probability.astype(float), **weighted),
        "log_loss": oracle.log_loss(labels, np.clip(probability.astype(float), 1e-7, 1 - 1e-7), **weighted),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@given(judged())
@settings(max_examples=100, deadline=None)
def test_a_weight_is_a_film_so_many_times(case: tuple[np.ndarray, np.ndarray, float, np.ndarray]) -> None:
    labels, probability, threshold, weights = case
    times = weights.astype(int)
    weighed = figures(labels, probability, threshold, weights[None])
    repeated = figures(np.repeat(labels, times), np.repeat(probability, times), threshold)
    for name in set(weighed) - {"ece"}:  # whose bins are those of the films as they are
        assert weighed[name][0] == pytest.approx(repeated[name][0], abs=1e-9), name


def test_of_films_as_they_are_the_figures_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    labels, probability = rng.integers(0, 2, 300), rng.random(300)
    found = figures(labels, probability, 0.5)
    assert found["auc"][0] == pytest.approx(auc(labels, probability))
    assert found["ece"][0] == pytest.approx(ece(labels, probability))


def test_predictive_values_are_those_of_altman_and_bland() -> None:
    # BMJ 1994;309:102, table 1: sensitivity 231/258, specificity 54/86, prevalence 258/344 -> 0.88 and 0.67;
    # at a prevalence of 0.25 their formula gives 0.45 and 0.95
    test = {"sensitivity": 231 / 258, "specificity": 54 / 86}
    assert predictive_values(test, 258 / 344) == pytest.approx({"ppv": 231 / 263, "npv": 54 / 81})
    assert {k: round(float(v), 2) for k, v in predictive_values(test, 0.25).items()} == {"ppv": 0.45, "npv": 0.95}
    with pytest.raises(InputError, match="prevalence 1 is out of range"):
        predictive_values(test, 1)


def test_draws_take_all_films_of_a_patient_or_none() -> None:
    patients = np.array(["a", "b", "a", "c", "b", "a"])
    drawn = draws(patients, count=200)
    assert drawn.shape == (200, 6)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 0] == drawn[:, 5]).all()
    assert (drawn[:, 1] == drawn[:, 4]).all()
    assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all(), "as many patients as there are"
    assert drawn.std() > 0


def simulated(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients of one to eight films whose scores go together; the sensitivity at 0.5 is 0.8."""
    films = rng.integers(1, 9, patients)
    who = np.repeat(np.arange(patients), films)
    ill = rng.random(patients) < 0.5
    shared, own = rng.normal(0, 0.9, patients)[who], rng.normal(0, math.sqrt(1 - 0.81), len(who))
    score = shared + own + np.where(ill[who], 0.8416, -0.8416)
    return ill[who].astype(int), 1 / (1 + np.exp(-score)), who.astype(str)


def test_the_interval_over_patients_holds_the_truth_where_films_of_a_patient_go_together() -> None:
    rng = np.random.default_rng(1)
    held = over_films = 0
    for _ in range(200):
        labels, probability, patients = simulated(rng, 120)
        value = {"sensitivity": float(figures(labels, probability, 0.5)["sensitivity"][0])}
        for unit, clustered in ((patients, True), (np.arange(len(patients)).astype(str), False)):
            interval = intervals(value, figures(labels, probability, 0.5, draws(unit, count=200)))["sensitivity"]
            inside = interval.low <= 0.8 <= interval.high
            held, over_films = held + (inside and clustered), over_films + (inside and not clustered)
    assert held / 200 >= 0.90
    assert over_films / 200 <= 0.85, "or the simulation would not tell the two apart"


def test_a_draw_without_diseased_films_is_left_out() -> None:
    labels, probability = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    drawn = figures(labels, probability, 0.5, draws(np.array(["a", "b", "c", "d"]), count=100))
    assert np.isnan(drawn["auc"]).any()
    assert intervals({"auc": 1.0}, drawn)["auc"].low == 1.0


def test_a_perfect_figure_has_an_interval_on_patients() -> None:
    labels, patients = np.repeat([0, 1], [20, 40]), np.repeat(np.arange(30), 2).astype(str)
    probability = labels * 0.8 + 0.1
    value = {name: float(of[0]) for name, of in figures(labels, probability, 0.5).items()}
    drawn = figures(labels, probability, 0.5, draws(patients))
    found = intervals(value, drawn, count_patients(labels, patients))
    assert count_patients(labels, patients) == (20, 10)
    for name, people in {"auc": 10, "sensitivity": 20, "specificity": 10, "accuracy": 10}.items():
        assert found[name] == wilson(people, people)
        assert found[name].low < 0.9 < found[name].high
    assert found["mcc"].low == found["mcc"].high == 1, "no share, so there is no such interval"
    assert intervals(value, drawn)["auc"].low == 1
