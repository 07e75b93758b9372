"""Probabilities that mean what they say, and thresholds with a promise. Both locked on the validation films.

Temperature scaling (Guo et al. 2017, sec. 4.2) keeps the order of the films, so AUC stays; it cannot mend a
prevalence other than that of the validation films.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InputError, RayscanError
from models.metrics import Labels, Scores

DEFAULT_POINT: Final = "balanced"
SENSITIVITY: Final = 0.98
SPECIFICITY: Final = 0.98
TEMPERATURES: Final = (0.2, 20.0)
"""Bounds of the temperature; films that separate perfectly would drive it to zero."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns logits into a probability, and a probability into a decision."""

    temperature: float
    """Logits are divided by it before the softmax."""
    operating_points: Mapping[str, float]
    """Name -> threshold; a film is called positive when its probability is at least the threshold."""
    default: str = DEFAULT_POINT

    def __post_init__(self) -> None:
        if self.default not in self.operating_points:
            raise InputError(f"default operating point {self.default!r} is none of {', '.join(self.operating_points)}")

    @property
    def threshold(self) -> float:
        """The default operating point's."""
        return self.operating_points[self.default]

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Calibrated class probabilities [N, C] of logits [N, C]."""
        scaled = logits / np.float32(self.temperature)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "operating_points": dict(self.operating_points)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """The inverse of `to_json`. Raises `InputError` on fields this version does not know."""
        try:
            return cls(
                temperature=float(value["temperature"]),
                operating_points={str(name): float(at) for name, at in value["operating_points"].items()},
                default=str(value["default"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a calibration of this version of rayscan: {error}") from error


def called_positive(probability: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """Whether probabilities of disease, of any shape, reach a threshold; compared in float32, in which engines answer.

    The one rule of evaluation and scoring: in float64 a threshold between two float32 could part them.
    Raises `RayscanError` for a probability that is no number: it must not pass as a film without disease.
    """
    values = np.asarray(probability, dtype=np.float32)
    if np.isnan(values).any():
        raise RayscanError(
            f"the model gave no number as the probability of {int(np.isnan(values).sum())} of {values.size} films;"
            " its weights or its engine are broken"
        )
    called: npt.NDArray[np.bool_] = values >= np.float32(threshold)
    return called


def fit_temperature(logits: npt.NDArray[np.floating[Any]], labels: Labels) -> float:
    """The temperature of the lowest negative log-likelihood of labels [N] under softmax(logits [N, C] / temperature).

    The likelihood is convex in 1 / temperature, so its slope is bisected; the answer lies within `TEMPERATURES`.
    """
    logits = logits.astype(np.float64)
    truth = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        scaled = logits * inverse
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        expected = (powers * logits).sum(axis=1) / powers.sum(axis=1)
        return float((expected - truth).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(1.0) == 0:
        return 1.0
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / np.sqrt(low * high))


def operating_points(labels: Labels, probability: Scores) -> dict[str, float]:
    """Thresholds locked on films of both classes.

    `rule_out`: the highest with sensitivity of at least 0.98; `balanced`: the largest sensitivity + specificity
    (Youden 1950), the lowest of equals; `rule_in`: the lowest with specificity of at least 0.98.

    Each lies halfway between two neighbouring probabilities, so that another engine's rounding does not move films
    across it, and is a float32, so that comparing in float32 and in float64 decides the same.
    """
    disease = labels == 1
    if disease.all() or not disease.any():
        raise InputError("operating points need films of both classes")
    thresholds = _thresholds(probability)
    order = np.sort(probability[disease].astype(np.float64))
    sensitivity = 1 - np.searchsorted(order, thresholds, side="left") / len(order)
    order = np.sort(probability[~disease].astype(np.float64))
    specificity = np.searchsorted(order, thresholds, side="left") / len(order)
    return {
        "rule_out": float(thresholds[sensitivity >= SENSITIVITY][-1]),
        "balanced": float(thresholds[np.argmax(sensitivity + specificity)]),
        "rule_in": float(thresholds[specificity >= SPECIFICITY][0]),
    }


def _thresholds(probability: Scores) -> npt.NDArray[np.float64]:
    """Every way to cut the films, rising: from all positive (0) to none (above the largest)."""
    levels = np.unique(probability.astype(np.float32))
    above = np.append(levels[1:], max(np.float32(1), np.nextafter(levels[-1], np.float32(2))))
    between = ((levels.astype(np.float64) + above) / 2).astype(np.float32)
    # neighbours one rounding step apart have no float32 between them: the upper one cuts the same
    between = np.where(between > levels, between, above)
    return np.concatenate([[0.0], between.astype(np.float64)])
