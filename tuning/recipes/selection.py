"""Which trial of a study becomes its model: the best by validation AUC, or of the few best the most robust.

The AUC of the best of many trials is too high by luck alone, and several trials differ by less than that luck. Among
them, the one that loses least on perturbed copies of the films is the better choice for another hospital. Balanced
accuracy is measured at the threshold that a bundle of the trial would have: see `models/statistics/robustness.py`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.films import Films, choose_films
from models.statistics.calibration import DEFAULT_POINT
from models.statistics.operating_points import operating_points
from models.statistics.robustness import robustness, score_copies

log = logging.getLogger("rayscan")

TOP: Final = 5
"""Number of trials with the highest validation AUC that are scored on perturbed films."""
FILMS: Final = 300

Score = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Films uint8 [N, H, W] -> uncalibrated probability of disease [N]."""


def most_robust(scorers: Sequence[Score], val: Films) -> tuple[int, list[dict[str, Any]]]:
    """The index of the model with the best mean balanced accuracy on perturbed films, and the figures of each.

    `scorers` are the best models by validation AUC, the best first; of equals the first is chosen.
    """
    chosen = choose_films(val.labels, FILMS)
    results: list[dict[str, Any]] = []
    for number, score in enumerate(scorers, 1):
        copies = score_copies(score, val.pixels[chosen], val.labels[chosen])
        threshold = operating_points(val.labels, score(val.pixels), val.patients).thresholds[DEFAULT_POINT]
        measured = robustness(copies, threshold)
        log.info(
            "%d of the best: balanced accuracy %.4f on %d films, %.4f on average over perturbed ones, worst %s",
            *(number, measured.balanced_accuracy, measured.films, measured.mean_balanced_accuracy, measured.worst),
        )
        names = ("auc", "mean_auc", "balanced_accuracy", "mean_balanced_accuracy", "worst")
        results.append({name: getattr(measured, name) for name in names})
    means = [float(result["mean_balanced_accuracy"]) for result in results]
    return means.index(max(means)), results
