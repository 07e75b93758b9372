"""Calibrated probabilities: from a network's logits to a chance of disease. Fitted on films it did not learn from.

Three methods of calibration. Each is monotonic, so it does not change the AUC:

    temperature   logits / T (Guo et al. 2017, sec. 4.2)
    platt         and an offset of the log-odds of disease (Platt 1999): for a model trained on weighted classes
    isotonic      and a rising line through the shares of disease seen at each level (Zadrozny & Elkan 2002)

None corrects for a prevalence other than that of the validation films; `models/statistics/prior_shift.py` does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InputError, RayscanError
from models.spec import CALIBRATION_METHODS, CalibrationMethod
from models.statistics.metrics import Labels

DEFAULT_POINT: Final = "balanced"
LEAST_BLOCK: Final = 20
"""Validation films behind each knot of an isotonic curve, at least."""
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
    bias: float = 0.0
    """Added to the log-odds of disease, after temperature and curve."""
    curve: tuple[tuple[float, float], ...] = ()
    """Knots of a rising, piecewise linear map of the log-odds of disease after the temperature: where, and to what.
    Beyond the last knots it goes on with slope 1; without knots it changes nothing."""

    def __post_init__(self) -> None:
        if any(x <= before_x or y <= before_y for (before_x, before_y), (x, y) in pairwise(self.curve)):
            raise InputError("the knots of a calibration curve must rise in both coordinates")
        if self.default not in self.operating_points:
            raise InputError(f"default operating point {self.default!r} is none of {', '.join(self.operating_points)}")

    @property
    def threshold(self) -> float:
        """The default operating point's."""
        return self.operating_points[self.default]

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Calibrated class probabilities [N, C] of logits [N, C]; the kinds of disease keep their shares."""
        scaled = logits / np.float32(self.temperature)
        if self.curve or self.bias:
            odds = disease_log_odds(scaled)
            scaled[:, 0] += odds - self._mapped(odds)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def _mapped(self, odds: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self.curve:
            return odds + np.float32(self.bias)
        at, to = np.array(self.curve, dtype=np.float32).T
        beyond = np.minimum(odds - at[0], 0) + np.maximum(odds - at[-1], 0)
        mapped: npt.NDArray[np.float32] = (np.interp(odds, at, to) + beyond + self.bias).astype(np.float32)
        return mapped

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
                bias=float(value.get("bias", 0.0)),
                curve=tuple((float(x), float(y)) for x, y in value.get("curve", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a calibration of this version of rayscan: {error}") from error


UNCALIBRATED: Final = Calibration(temperature=1.0, operating_points={DEFAULT_POINT: 0.5})
"""Probabilities as the network gives them, cut at one half."""


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


def disease_log_odds(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
    """Logits [N, C] -> log-odds [N] of any disease against none: ln((1 - p) / p) of the first class's probability p.

    From the logits, as the probability itself is 0 or 1 in float32 for films a network is sure of, and ties them.
    """
    diseases, none = logits[:, 1:], logits[:, 0]
    highest = diseases.max(axis=1)
    odds: npt.NDArray[Any] = highest + np.log(np.exp(diseases - highest[:, None]).sum(axis=1)) - none
    return odds


def fit_calibration(logits: npt.NDArray[np.floating[Any]], labels: Labels, method: CalibrationMethod) -> Calibration:
    """The map of one method, fitted on validation films: logits [N, C], class indices [N]. Its operating point is 0.5.

    Raises `InputError` for an unknown method, or unless both diseased and healthy films are there.
    """
    disease = labels != 0
    if disease.all() or not disease.any():
        raise InputError("calibration needs films with and without disease")
    points = {DEFAULT_POINT: 0.5}
    if method == "temperature":
        return Calibration(temperature=fit_temperature(logits, labels), operating_points=points)
    odds = disease_log_odds(logits)
    if method == "platt":
        slope, bias = platt(odds, disease)
        return Calibration(temperature=1 / slope, operating_points=points, bias=bias)
    if method == "isotonic":
        temperature = fit_temperature(logits, labels)
        curve = _isotonic(disease_log_odds(logits / temperature), disease)
        return Calibration(temperature=temperature, operating_points=points, curve=curve)
    raise InputError(f"unknown calibration {method!r}; choose {', '.join(CALIBRATION_METHODS)}")


def platt(odds: npt.NDArray[Any], disease: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the log-odds of lowest log loss, by Newton's method; slopes stay within 1 / TEMPERATURES.

    `odds` [N] are those of a network, `disease` [N] what is true; both kinds must be there. Targets are smoothed as in
    Platt 1999, sec. 2.2, so that perfectly separated films have a finite answer, too.
    """
    ill, well = disease.sum(), (~disease).sum()
    target = np.where(disease, (ill + 1) / (ill + 2), 1 / (well + 2))
    inputs = np.stack([odds.astype(np.float64), np.ones(len(odds))], axis=1)
    found = np.array([1.0, 0.0])
    for _ in range(50):
        share = 1 / (1 + np.exp(-np.clip(inputs @ found, -500, 500)))
        slope = inputs.T @ (share - target)
        curvature = inputs.T @ (inputs * (share * (1 - share))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        found = found - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return float(np.clip(found[0], 1 / TEMPERATURES[1], 1 / TEMPERATURES[0])), float(found[1])


def _isotonic(odds: npt.NDArray[Any], disease: npt.NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Knots at the mean odds of each block of the isotonic regression, joined until each holds LEAST_BLOCK films."""
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 (a second, and only where a model is promoted)

    order = np.argsort(odds, kind="stable")
    odds, ill = odds[order].astype(np.float64), disease[order]
    fitted = IsotonicRegression().fit_transform(odds, ill)
    edges = [0, *(np.flatnonzero(np.diff(fitted)) + 1), len(odds)]
    knots: list[tuple[float, float]] = []
    start = 0
    for end in edges[1:]:
        last = end == edges[-1]
        if end - start < LEAST_BLOCK and not last:
            continue
        # half a film more of each keeps the odds of a pure block finite
        share = (ill[start:end].sum() + 0.5) / (end - start + 1)
        at, to = float(odds[start:end].mean()), float(np.log(share / (1 - share)))
        start = end
        if not knots or (at > knots[-1][0] + 1e-6 and to > knots[-1][1] + 1e-6):
            knots.append((at, to))
    return tuple(knots)


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
