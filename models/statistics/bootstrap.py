"""Every figure of a two-class test on weighted films, and its bootstrap interval over patients.

A resampled set of films is the same films with other weights, so one definition gives both the figure (weights of one)
and, for a thousand draws of patients at once, its interval. Films of one patient are drawn together: they are not
independent (Obuchowski 1997; Rutter 2000, "Bootstrap estimation of diagnostic accuracy with patient-clustered data").
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.statistics.metrics import ECE_BINS, Interval, Labels, Scores, wilson

DRAWS: Final = 1000
SHARES: Final = frozenset(
    ["auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1", "ppv", "npv"],
)
"""Figures that are 1 at best and not more: perfect ones have no spread to draw an interval from."""
SURE: Final = 1e-7
"""Probabilities are clipped to this distance from 0 and 1 before the logarithm: float32 rounds a sure model to 1."""

Weights = npt.NDArray[np.float64]
"""[B, N]: how often each film counts in each of B draws."""
Figures = dict[str, npt.NDArray[np.float64]]
"""Name -> its value in each draw [B]; NaN where a draw lacks the films to compute it from."""


def figures(
    labels: Labels, probability: Scores, threshold: float | npt.NDArray[np.float64], weights: Weights | None = None
) -> Figures:
    """Every figure at one threshold, or at one for each film [N], for each row of `weights` (default: one row of ones).

    auc, average_precision (step-wise, Davis & Goadrich 2006), accuracy, balanced_accuracy, sensitivity, specificity,
    f1, mcc (Matthews 1975), brier, log_loss (natural logarithm), ece (bins fixed on the films as they are).
    `labels` [N] are 1 for disease, `probability` [N] is of disease.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    chance: npt.NDArray[np.float64] = probability.astype(np.float64)
    disease, called = labels != 0, chance >= threshold
    tp, fp = weights @ (disease & called), weights @ (~disease & called)
    fn, tn = weights @ (disease & ~called), weights @ (~disease & ~called)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        total = weights.sum(axis=1)
        sides = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            **_ranked(disease, chance, weights),
            "accuracy": (tp + tn) / total,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "f1": 2 * tp / (2 * tp + fp + fn),
            # a side without films makes it 0 / 0; the limit is 0 (Chicco & Jurman 2020)
            "mcc": np.where(sides > 0, (tp * tn - fp * fn) / np.sqrt(np.where(sides > 0, sides, 1)), 0.0),
            "brier": weights @ np.square(chance - disease) / total,
            "log_loss": weights @ _log_loss(disease, chance) / total,
            "ece": _ece(disease, chance, weights) / total,
        }


def predictive_values(figures: Mapping[str, Any], prevalence: float) -> dict[str, Any]:
    """ppv and npv of a test with this sensitivity and specificity where `prevalence` of the films show the disease.

    Bayes' rule (Altman & Bland 1994, BMJ 309:102); the films' own share of disease does not matter.
    """
    if not 0 < prevalence < 1:
        raise InputError(f"prevalence {prevalence} is out of range; give a share between 0 and 1")
    sensitivity, specificity = np.asarray(figures["sensitivity"]), np.asarray(figures["specificity"])
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    spared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"ppv": true / (true + false), "npv": spared / (spared + missed)}


def count_patients(labels: Labels, patients: npt.NDArray[np.str_]) -> tuple[int, int]:
    """How many patients have films with disease, and how many films without; `labels` [N] are 0 for no disease."""
    return len(np.unique(patients[labels != 0])), len(np.unique(patients[labels == 0]))


def aucs(labels: Labels, scores: Scores, weights: Weights) -> npt.NDArray[np.float64]:
    """The AUC alone, for each row of `weights`; `scores` [N] of any scale. NaN where a row lacks a class."""
    ill, well = _steps(labels != 0, scores.astype(np.float64), weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _auc(ill, well)


def draws(patients: npt.NDArray[np.str_], *, count: int = DRAWS, seed: int = 0) -> Weights:
    """Weights [count, N] of `count` draws with replacement from the patients [N], each with all of its films."""
    _, films = np.unique(patients, return_inverse=True)
    number = int(films.max()) + 1
    rng = np.random.default_rng(seed)
    times: Weights = rng.multinomial(number, np.full(number, 1 / number), size=count).astype(np.float64)
    return np.take(times, films, axis=1)


def intervals(
    values: Mapping[str, float], drawn: Mapping[str, npt.NDArray[np.float64]], people: tuple[int, int] | None = None
) -> dict[str, Interval]:
    """Each value with the 2.5th and 97.5th percentile of its draws (Efron 1981); draws in which it is NaN are left out.

    A share that is 0 or 1 is so in every draw, which says nothing: it has Wilson's interval on patients, if these are
    counted in `people` (as `count_patients` does); where both classes matter, on the fewer. A figure that is NaN in
    every draw has its value as both ends.
    """
    found = {}
    for name, value in values.items():
        if people and name in SHARES and value in {0.0, 1.0}:
            count = {"sensitivity": people[0], "specificity": people[1]}.get(name, min(people))
            found[name] = wilson(value * count, count)
            continue
        finite = drawn[name][np.isfinite(drawn[name])]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
        found[name] = Interval(value=float(value), low=min(float(low), value), high=max(float(high), value))
    return found


def _log_loss(disease: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    of_truth = np.clip(np.where(disease, probability, 1 - probability), SURE, 1 - SURE)
    loss: npt.NDArray[np.float64] = -np.log(of_truth)
    return loss


def _ranked(disease: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64], weights: Weights) -> Figures:
    """The figures that depend only on the ranking of the films."""
    ill, well = _steps(disease, probability, weights)
    # from the most suspicious film down
    caught = np.cumsum(ill[:, ::-1], axis=1)
    flagged = np.maximum(caught + np.cumsum(well[:, ::-1], axis=1), np.finfo(float).tiny)
    return {
        "auc": _auc(ill, well),
        "average_precision": (ill[:, ::-1] * caught / flagged).sum(axis=1) / ill.sum(axis=1),
    }


def _steps(
    disease: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], weights: Weights
) -> tuple[Weights, Weights]:
    """Weights [B, S] of diseased and of healthy films at each score, rising; films of equal score are one step."""
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    ill: Weights = np.add.reduceat((weights * disease)[:, order], first, axis=1)
    well: Weights = np.add.reduceat((weights * ~disease)[:, order], first, axis=1)
    return ill, well


def _auc(ill: Weights, well: Weights) -> npt.NDArray[np.float64]:
    below = np.cumsum(well, axis=1) - well / 2
    found: npt.NDArray[np.float64] = (ill * below).sum(axis=1) / (ill.sum(axis=1) * well.sum(axis=1))
    return found


def _ece(
    disease: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64], weights: Weights
) -> npt.NDArray[np.float64]:
    edges = np.quantile(probability, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, probability, side="right")
    gaps = np.zeros((ECE_BINS, len(disease)))
    gaps[bins, np.arange(len(disease))] = probability - disease
    summed: npt.NDArray[np.float64] = np.abs(weights @ gaps.T).sum(axis=1)
    return summed
