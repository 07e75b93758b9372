"""Operating points: thresholds on the probability of disease, found on films the model did not learn from, then locked.

    rule_out   the highest with which new films of such patients have a sensitivity of at least 0.98, in 9 of 10 cases
    balanced   the largest sensitivity + specificity (Youden 1950): the default
    rule_in    the lowest with which new films have a specificity of at least 0.98, in 9 of 10 cases

A threshold with a sensitivity of 0.98 on the films that chose it keeps 0.98 on new films only every other time. The
share that is really missed, when k of n films drawn at random score below a threshold set between the films, has a Beta
distribution (Wilks 1941, "Determination of sample sizes for setting tolerance limits"), of which the 90 % point is held
against the promise. Films of a patient resemble each other, so n counts patients. Where there are too few of them for
the promise (under 114), the point misses none of the films, and `Promise.bound` says how little that is worth.

The promise is about new films of the same kind of patients. It says nothing about another hospital.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.statistics.metrics import Labels, Scores

SENSITIVITY: Final = 0.98
SPECIFICITY: Final = 0.98
CONFIDENCE: Final = 0.9
"""How often a promise must hold on new films."""
PLATEAU: Final = 0.003
"""Sensitivity + specificity within this of the largest counts as as good."""

Patients = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What an operating point promises of new films."""

    figure: Literal["sensitivity", "specificity"]
    at_least: float
    """What was asked for."""
    bound: float
    """What holds with `confidence`; below `at_least` where there were too few patients."""
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class OperatingPoints:
    """Locked thresholds, and what they promise."""

    thresholds: Mapping[str, float]
    promises: Mapping[str, Promise]


def operating_points(labels: Labels, probability: Scores, patients: Patients | None = None) -> OperatingPoints:
    """Thresholds by the labels [N], probabilities of disease [N] and patients [N] (default: each film its own).

    Each lies halfway between two neighbouring probabilities, so that another engine's rounding does not move films
    across it, and is a float32, so that comparing in float32 and in float64 decides the same. Of the thresholds that
    are as good as the best, `balanced` is the middle one, by the films between them: the lowest and the highest are
    where they are by the luck of one film.

    Raises `InputError` unless both classes are there.
    """
    disease = labels != 0
    if disease.all() or not disease.any():
        raise InputError("operating points need films of both classes")
    thresholds = _thresholds(probability)
    people = np.arange(len(labels)).astype(str) if patients is None else patients
    missed, spared = _below(probability[disease], thresholds), _below(probability[~disease], thresholds)
    sensitivity = _bound(missed, len(np.unique(people[disease])))
    specificity = _bound(1 - spared, len(np.unique(people[~disease])))
    rule_out = int(np.flatnonzero((sensitivity >= SENSITIVITY) | (missed == 0))[-1])
    rule_in = int(np.flatnonzero((specificity >= SPECIFICITY) | (spared == 1))[0])
    return OperatingPoints(
        thresholds={
            "rule_out": float(thresholds[rule_out]),
            "balanced": float(thresholds[_middle(spared - missed)]),
            "rule_in": float(thresholds[rule_in]),
        },
        promises={
            "rule_out": Promise(figure="sensitivity", at_least=SENSITIVITY, bound=float(sensitivity[rule_out])),
            "rule_in": Promise(figure="specificity", at_least=SPECIFICITY, bound=float(specificity[rule_in])),
        },
    )


def _bound(wrong: npt.NDArray[np.float64], patients: int) -> npt.NDArray[np.float64]:
    """The share decided rightly on new films that holds with CONFIDENCE, where a share `wrong` of films was not."""
    from scipy.special import betaincinv  # noqa: PLC0415 (only where a model is made)

    failures = wrong * patients
    bound: npt.NDArray[np.float64] = betaincinv(np.maximum(patients - failures, 1e-9), failures + 1, 1 - CONFIDENCE)
    return bound


def _middle(gain: npt.NDArray[np.float64]) -> int:
    """The middle index of the plateau around the largest."""
    best = int(np.argmax(gain))
    low = high = best
    while low > 0 and gain[low - 1] >= gain[best] - PLATEAU:
        low -= 1
    while high < len(gain) - 1 and gain[high + 1] >= gain[best] - PLATEAU:
        high += 1
    return (low + high) // 2


def _below(probability: Scores, thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of probabilities below each threshold."""
    order = np.sort(probability.astype(np.float32).astype(np.float64))
    share: npt.NDArray[np.float64] = np.searchsorted(order, thresholds, side="left") / len(order)
    return share


def _thresholds(probability: Scores) -> npt.NDArray[np.float64]:
    """Every way to cut the films, rising: from all positive (0) to none (above the largest)."""
    levels = np.unique(probability.astype(np.float32))
    above = np.append(levels[1:], max(np.float32(1), np.nextafter(levels[-1], np.float32(2))))
    between = ((levels.astype(np.float64) + above) / 2).astype(np.float32)
    # neighbours one rounding step apart have no float32 between them: the upper one cuts the same
    between = np.where(between > levels, between, above)
    return np.concatenate([[0.0], between.astype(np.float64)])
