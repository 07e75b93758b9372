"""The prevalence of an archive without labels, and probabilities corrected for it. Off unless asked for.

Both estimates stand on one assumption: LABEL SHIFT. Diseased films look there as they did in validation, and so do
healthy ones; only their proportion differs. Another scanner, age group or exposure breaks it, and then
either figure is wrong without a sign of it.
"""

from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.spec import PriorMethod
from models.statistics.calibration import called_positive
from models.statistics.metrics import Scores

PRIOR_METHODS: Final = get_args(PriorMethod)
ITERATIONS: Final = 1000
CONVERGED: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """What is estimated of an archive."""

    method: str
    training: float
    """Share of disease among the films the model was calibrated on."""
    estimated: float
    """Share of disease among the films at hand."""

    @property
    def bias(self) -> float:
        """What the log-odds of disease change by: of the prior (Saerens et al. 2002, eq. 2.4)."""
        return _odds(self.estimated) - _odds(self.training)

    def corrected(self, probability: Scores) -> npt.NDArray[np.float64]:
        """Calibrated probabilities [N] of disease as they are under the estimated prior; their order stays."""
        kept = np.clip(probability.astype(np.float64), 1e-9, 1 - 1e-9)
        changed: npt.NDArray[np.float64] = 1 / (1 + np.exp(-(np.log(kept / (1 - kept)) + self.bias)))
        return changed


def saerens(probability: Scores, training: float) -> PriorShift:
    """The prior of highest likelihood, by expectation maximisation (Saerens, Latinne & Decaestecker 2002, eq. 2.9).

    `probability` [N] is calibrated, of unlabelled films; `training` is the share of disease it was calibrated on.
    The likelihood has one maximum; without diseased films it lies at 0, so the estimate keeps half a film's distance.
    """
    _check(training)
    probability = probability.astype(np.float64)
    films = len(probability)
    prior = training
    for _ in range(ITERATIONS):
        ill, well = probability * prior / training, (1 - probability) * (1 - prior) / (1 - training)
        before, prior = prior, float((ill / (ill + well)).mean())
        if abs(prior - before) < CONVERGED:
            break
    return PriorShift(method="saerens", training=training, estimated=_inside(prior, films))


def bbse(
    probability: Scores, threshold: float, *, sensitivity: float, specificity: float, training: float
) -> PriorShift:
    """The prior that explains how many films are called positive (Lipton, Wang & Smola 2018, prop. 2, two classes).

    `probability` [N] is of unlabelled films and needs no calibration; the rest is known of the validation films at this
    threshold. Raises `InputError` when calls there tell nothing: sensitivity at most 1 - specificity.
    """
    _check(training)
    alarms = 1 - specificity
    if sensitivity <= alarms:
        raise InputError(f"at threshold {threshold:g} the model calls as many healthy films positive as diseased ones")
    called = float(called_positive(probability, threshold).mean())
    prior = (called - alarms) / (sensitivity - alarms)
    return PriorShift(method="bbse", training=training, estimated=_inside(prior, len(probability)))


def _check(training: float) -> None:
    if not 0 < training < 1:
        raise InputError("a prior can be estimated only from a model calibrated on films with and without disease")


def _inside(prior: float, films: int) -> float:
    margin = 0.5 / max(1, films)
    return min(max(prior, margin), 1 - margin)


def _odds(share: float) -> float:
    return float(np.log(share / (1 - share)))
