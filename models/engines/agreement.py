"""How closely every engine of a machine agrees with eager torch in float32, measured when a model is promoted.

AUC does not show it: quantised to eight bits, 4 % of the films of one model changed sides with its AUC unchanged. What
counts are the films that change sides, at each operating point, and how far from it the reference had put them.

A model that was promoted on a machine without a GPU has no agreement of a GPU's engines, which then may not run it;
`rayscan agree` measures it later, on the same validation films, on a machine that has one.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.engines.choice import CPU_BATCH, GPU_BATCH, EngineBuilder
from models.engines.engine import Engine, EngineError, Inference, join_inferences
from models.engines.machine import Machine
from models.films import Films, choose_films
from models.statistics.calibration import Calibration, called_positive
from models.statistics.metrics import Labels, auc

COMPARED_FILMS: Final = 1000
"""Validation films compared at most: enough to see 1 % of flips, in seconds for a small model."""
MOST_FLIPS: Final = 0.01
"""Share of the films that may change sides at an operating point."""
FARTHEST_FLIP: Final = 0.1
"""How far from the operating point the reference probability of such a film may lie."""
MOST_AUC_CHANGE: Final = 0.001

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Films that an engine calls differently from the reference at one operating point."""

    films: int
    share: float
    farthest: float
    """Largest distance of their reference probabilities from the operating point; 0 when there are none."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How an engine compares with eager torch in float32 on the same films."""

    version: str
    """Library and version of the engine."""
    films: int = 0
    mean_dp: float | None = None
    """Mean absolute difference of the probability of disease; None if the engine gave none."""
    max_dp: float | None = None
    auc_change: float | None = None
    flips: Mapping[str, Flips] = field(default_factory=dict)
    mean_distance_change: float | None = None
    """Mean relative change of the feature distance; None if the model has none."""
    reasons: tuple[str, ...] = ()
    """Why it is not allowed; empty when it is."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, with `allowed`."""
        return {**asdict(self), "reasons": list(self.reasons), "allowed": not self.reasons}


def compare(
    reference: Inference, tested: Inference, labels: Labels, operating_points: Mapping[str, float], *, version: str
) -> Agreement:
    """Agreement of two inferences of the same films with class indices [N], judged by the rules of this module."""
    before, after = (1 - inference.probabilities[:, 0] for inference in (reference, tested))
    broken = int((~np.isfinite(after)).sum())
    if broken:
        return Agreement(version=version, films=len(labels), reasons=(f"gives no probability for {broken} films",))
    difference = np.abs(after.astype(np.float64) - before)
    flips = {name: _flips(before, after, threshold) for name, threshold in operating_points.items()}
    auc_change = auc(labels, after) - auc(labels, before)
    reasons = [
        f"{at.films} of {len(labels)} films change sides at {name}, the farthest {at.farthest:.3f} away from it"
        for name, at in flips.items()
        if at.share > MOST_FLIPS or at.farthest > FARTHEST_FLIP
    ]
    if abs(auc_change) > MOST_AUC_CHANGE:
        reasons.append(f"AUC changes by {auc_change:+.4f}")
    known = np.isfinite(reference.distance) & np.isfinite(tested.distance) & (reference.distance > 0)
    moved = np.abs(tested.distance[known] / reference.distance[known] - 1)
    return Agreement(
        version=version,
        films=len(labels),
        mean_dp=float(difference.mean()),
        max_dp=float(difference.max()),
        auc_change=auc_change,
        flips=flips,
        mean_distance_change=float(moved.mean()) if known.any() else None,
        reasons=tuple(reasons),
    )


def measure(
    builder: EngineBuilder, pixels: npt.NDArray[np.uint8], labels: Labels, calibration: Calibration
) -> tuple[Inference, dict[str, Agreement]]:
    """The reference inference of films uint8 [N, H, W], and the agreement of every other engine, by name.

    An engine that cannot run the network is not allowed, for that reason.
    """
    kinds = builder.machine.kinds()
    reference_kind = next(kind for kind in kinds if (kind.engine, kind.precision) == ("torch-eager", "fp32"))
    reference = _infer(builder.build(reference_kind), pixels)
    points = calibration.operating_points
    agreements = {}
    for kind in kinds:
        if kind == reference_kind:
            continue
        version = builder.machine.version(kind)
        try:
            tested = _infer(builder.build(kind), pixels)
        except EngineError as error:
            agreements[kind.name] = Agreement(version=version, films=len(labels), reasons=(str(error),))
        else:
            agreements[kind.name] = compare(reference, tested, labels, points, version=version)
        log.info("%s: %s", kind.name, _summary(agreements[kind.name]))
    return reference, agreements


def agree(bundle: Bundle, val: Films, machine: Machine) -> dict[str, Agreement]:
    """The agreement of every engine of a machine that runs a bundle, by name, on its validation films."""
    chosen = choose_films(val.labels, COMPARED_FILMS)
    builder = EngineBuilder(
        bundle.classifier,
        bundle.graph(),
        machine,
        size=bundle.spec.preprocessing.size,
        classes=len(bundle.spec.classes),
        batch=GPU_BATCH if machine.has_gpu else CPU_BATCH,
    )
    return measure(builder, val.pixels[chosen], val.labels[chosen], bundle.calibration)[1]


def _infer(engine: Engine, pixels: npt.NDArray[np.uint8], batch: int = 64) -> Inference:
    parts = [engine(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return join_inferences(parts, classes=parts[0].probabilities.shape[1])


def _flips(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], threshold: float) -> Flips:
    flipped = called_positive(before, threshold) != called_positive(after, threshold)
    far = np.abs(before[flipped].astype(np.float64) - threshold)
    return Flips(films=int(flipped.sum()), share=float(flipped.mean()), farthest=float(far.max(initial=0)))


def _summary(agreement: Agreement) -> str:
    if agreement.reasons:
        return f"not allowed: {'; '.join(agreement.reasons)}"
    return f"agrees with float32 torch (probabilities move by {agreement.max_dp:.2g} at most)"
