"""What a search optimises: `auc`, `sensitivity@specificity=0.9`, `latency`, or several of them at once.

All but `latency` are computed on the validation films after every epoch, and the best epoch is kept. They depend only
on the ranking, so calibration does not change them. `latency` is the median time a film takes on the engine that this
machine would score with. It depends on the architecture and not on the weights, so it is measured before the training,
and trials that are stopped early have it, too.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from models.errors import InputError

if TYPE_CHECKING:  # settings and recipes name objectives, and are read without numpy
    from models.statistics.metrics import Labels, Scores

AUC: Final = "auc"
LATENCY: Final = "latency"
_SENSITIVITY: Final = re.compile(r"sensitivity@specificity=(0(?:\.\d+)?|\.\d+|1(?:\.0*)?)")

Judge = Callable[["Labels", "Scores"], float]
"""Labels [N], 1 for disease, and a score [N] that rises with it -> a value; higher is better."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One quantity that a search maximises or minimises."""

    name: str
    judge: Judge | None
    """None if it is not computed on the validation films."""
    mode: Literal["max", "min"] = "max"

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for `mode`."""
        return "maximize" if self.mode == "max" else "minimize"


def parse_objective(text: str) -> Objective:
    """The objective of this name. Raises `InputError` for an unknown one."""
    if text == AUC:
        return Objective(name=AUC, judge=_auc)
    if text == LATENCY:
        return Objective(name=LATENCY, judge=None, mode="min")
    if match := _SENSITIVITY.fullmatch(text):
        floor = float(match.group(1))
        if 0 < floor < 1:
            return Objective(name=text, judge=partial(sensitivity_at, specificity=floor))
    raise InputError(
        f"unknown objective {text!r}; choose {AUC}, sensitivity@specificity=0.9 (or another floor between 0 and 1),"
        f" or beside one of them {LATENCY}"
    )


def parse_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """A study's objectives, the one of the validation films first. Raises `InputError` unless there is one such."""
    objectives = tuple(parse_objective(name) for name in dict.fromkeys(names))
    if sum(objective.judge is not None for objective in objectives) != 1:
        raise InputError(
            f"a search needs one objective of the validation films, not {', '.join(names) or 'none'}; choose {AUC} or"
            f" sensitivity@specificity=0.9, and {LATENCY} beside it where speed counts"
        )
    return tuple(sorted(objectives, key=lambda objective: objective.judge is None))


def _auc(labels: "Labels", score: "Scores") -> float:
    from models.statistics.metrics import auc  # noqa: PLC0415 (see above)

    return auc(labels, score)


def sensitivity_at(labels: "Labels", score: "Scores", *, specificity: float) -> float:
    """The highest sensitivity at any threshold with at least this specificity.

    Labels [N] are 1 for disease; scores [N] rise with it. The threshold is the score of a healthy film, and films above
    it are called diseased.
    """
    import numpy as np  # noqa: PLC0415 (see above)

    healthy = np.sort(score[labels == 0])
    shares = np.arange(1, len(healthy) + 1) / len(healthy)  # of healthy films up to each score
    threshold = healthy[np.searchsorted(shares, specificity)]
    return float((score[labels == 1] > threshold).mean())


def pareto_front(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Indices of the points that no other dominates: at least as good in every objective and better in one."""
    import numpy as np  # noqa: PLC0415 (see above)

    signs = np.array([1.0 if objective.mode == "max" else -1.0 for objective in objectives])
    values = np.array(points, dtype=np.float64).reshape(len(points), len(objectives)) * signs
    return [
        place
        for place, own in enumerate(values)
        if not ((values >= own).all(axis=1) & (values > own).any(axis=1)).any()
    ]
