"""What a search optimises: `log_score`, `auc`, `sensitivity@specificity=0.9`, `latency`, or one of them and `latency`.

All but `latency` are computed on the validation films after every epoch, and the best epoch is kept. `log_score` looks
at perturbed copies of them as well (`models/statistics/robustness.py`); the others depend only on the ranking.
`log_score` is the default of a search. Good networks differ in AUC by less than its standard error (0.002 on 785
Kermany films), so that its best trial is the luckiest one, and its best epoch, too; and it says nothing about films of
another archive.

`latency` is the median time a film takes on the engine that this machine would score with. It depends on the
architecture and not on the weights, so it is measured before the training, and trials that are stopped early have it,
too. As a limit, `latency<=5`, it refuses slower architectures before they are trained.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from models.errors import InputError

if TYPE_CHECKING:  # settings and recipes name objectives, and are read without numpy
    import numpy as np
    import numpy.typing as npt

    from models.statistics.metrics import Labels, Scores

    Copies = npt.NDArray[np.bool_]

AUC: Final = "auc"
LOG_SCORE: Final = "log_score"
LATENCY: Final = "latency"
_LIMIT: Final = re.compile(r"latency<=(\d+(?:\.\d+)?)")
_SENSITIVITY: Final = re.compile(r"sensitivity@specificity=(0(?:\.\d+)?|\.\d+|1(?:\.0*)?)")

Judge = Callable[["Labels", "Scores", "Copies | None"], float]
"""Labels [N], 1 for disease, log-odds of it [N], and which of the films are perturbed copies -> a value; higher is
better."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One quantity that a search maximises or minimises."""

    name: str
    judge: Judge | None
    """None if it is not computed on the validation films."""
    mode: Literal["max", "min"] = "max"
    copies: bool = False
    """Whether it looks at perturbed copies of the films, too."""
    gain: float = 0.0005
    """Least difference that counts as one. For the AUC a quarter of the standard error of 0.996 on 785 films, 575 of
    them diseased (Hanley & McNeil 1982)."""

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for `mode`."""
        return "maximize" if self.mode == "max" else "minimize"


def parse_objective(text: str) -> Objective:
    """The objective of this name. Raises `InputError` for an unknown one."""
    if text == AUC:
        return Objective(name=AUC, judge=_auc)
    if text == LOG_SCORE:
        # a quarter of the standard error of a mean of 0.1 on 785 films, their log loss having a deviation of 0.3
        return Objective(name=LOG_SCORE, judge=log_score, copies=True, gain=0.0025)
    if text == LATENCY:
        return Objective(name=LATENCY, judge=None, mode="min")
    if match := _SENSITIVITY.fullmatch(text):
        floor = float(match.group(1))
        if 0 < floor < 1:
            return Objective(name=text, judge=partial(sensitivity_at, specificity=floor))
    raise InputError(
        f"unknown objective {text!r}; choose {LOG_SCORE}, {AUC}, sensitivity@specificity=0.9 (or another floor between"
        f" 0 and 1), or beside one of them {LATENCY}, or a limit of milliseconds a film such as {LATENCY}<=5"
    )


def parse_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """A study's objectives, the one of the validation films first; limits are left out.

    Raises `InputError` unless there is one objective of the validation films.
    """
    objectives = tuple(parse_objective(name) for name in dict.fromkeys(names) if not _LIMIT.fullmatch(name))
    if sum(objective.judge is not None for objective in objectives) != 1:
        raise InputError(
            f"a search needs one objective of the validation films, not {', '.join(names) or 'none'}; choose"
            f" {LOG_SCORE}, {AUC} or sensitivity@specificity=0.9, and beside it where speed counts {LATENCY} or"
            f" {LATENCY}<=5"
        )
    return tuple(sorted(objectives, key=lambda objective: objective.judge is None))


def latency_limit(names: Sequence[str]) -> float | None:
    """The lowest limit among a study's objectives, in milliseconds a film; None without any."""
    limits = [float(match.group(1)) for name in names if (match := _LIMIT.fullmatch(name))]
    return min(limits, default=None)


def log_score(labels: "Labels", odds: "Scores", copies: "Copies | None" = None) -> float:
    """The mean logarithm of the probability given to what is true: at most 0, higher is better (Good 1952).

    Labels [N] are 1 for disease, `odds` [N] uncalibrated log-odds of it. Platt's map, fitted to the films as they are,
    makes them probabilities, as in a bundle: a network is not to win or lose by what calibration mends. The mean over
    the films as they are and that over their `copies` count alike.
    """
    import numpy as np  # noqa: PLC0415 (see above)

    from models.statistics.calibration import platt  # noqa: PLC0415 (see above)

    if copies is None or not copies.any():
        copies = np.zeros(len(labels), dtype=bool)
    plain = ~copies
    slope, bias = platt(odds[plain], labels[plain] == 1)
    calibrated = slope * odds.astype(np.float64) + bias
    each = -np.logaddexp(0, np.where(labels == 1, -calibrated, calibrated))
    parts = [each[own].mean() for own in (plain, copies) if own.any()]
    return float(np.mean(parts))


def _auc(labels: "Labels", score: "Scores", copies: "Copies | None" = None) -> float:
    from models.statistics.metrics import auc  # noqa: PLC0415 (see above)

    return auc(labels, score)


def sensitivity_at(labels: "Labels", score: "Scores", copies: "Copies | None" = None, *, specificity: float) -> float:
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
