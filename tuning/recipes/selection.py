"""Which trial of a study becomes its model: the best validation AUC, or the best of the few best on spoilt films.

The AUC of the best of many trials is too high by luck alone, and several trials lie within that luck of each other.
Among them the one that loses least where films are made otherwise is the better bet for another hospital. The loss is
that of decisions at the threshold a bundle of the trial would have: see `models/statistics/robustness.py`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.films import Films, choose_films
from models.statistics.calibration import DEFAULT_POINT, operating_points
from models.statistics.robustness import robustness, score_copies

log = logging.getLogger("rayscan")

TOP: Final = 5
"""Trials of the highest validation AUC that are scored on changed films."""
FILMS: Final = 300

Score = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Films uint8 [N, H, W] -> uncalibrated probability of disease [N]."""


def most_robust(scorers: Sequence[Score], val: Films) -> tuple[int, list[dict[str, Any]]]:
    """The place of the model with the best mean balanced accuracy over changed films, and what each came to.

    `scorers` are the best models by validation AUC, the best first; of equals it is taken.
    """
    some = choose_films(val.labels, FILMS)
    told: list[dict[str, Any]] = []
    for number, score in enumerate(scorers, 1):
        copies = score_copies(score, val.pixels[some], val.labels[some])
        threshold = operating_points(val.labels, score(val.pixels), copies.pooled)[DEFAULT_POINT]
        found = robustness(copies, threshold)
        log.info(
            "%d of the best: balanced accuracy %.4f on %d films, %.4f in the mean over changed ones, worst %s",
            *(number, found.balanced_accuracy, found.films, found.mean_balanced_accuracy, found.worst),
        )
        kept = ("auc", "mean_auc", "balanced_accuracy", "mean_balanced_accuracy", "worst")
        told.append({name: getattr(found, name) for name in kept})
    means = [float(of["mean_balanced_accuracy"]) for of in told]
    return means.index(max(means)), told
