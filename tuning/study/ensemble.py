"""Several trials of a study as one model: the mean of their probabilities, members chosen greedily, with replacement.

Caruana, Niculescu-Mizil, Crew & Ksikes 2004, "Ensemble selection from libraries of models", sec. 2: begin with the best
trial, then add the trial that improves the mean most, again and again; a trial added several times weighs more.

An ensemble judged on the films that chose it looks better than it is, more so than a single trial. So its gain is
measured on halves of the patients: members, and the single trial to beat, are chosen on one half and compared on the
other (`tuning/study/optimism.py`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from models.statistics.comparison import PairedTest, delong_test
from models.statistics.metrics import Interval, Labels, Z, auc
from tuning.study.optimism import both_ways, halves

MOST: Final = 8
"""Members, each counted as often as it was added. Each different one costs one more run of a network per film."""
POOL: Final = 25
"""Best trials that members are chosen among; a weaker one is hardly ever added, and each makes the choice slower."""
SPLITS: Final = 20

Probabilities = npt.NDArray[np.float64]
"""Of disease [T, N]: T trials, N films."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What an ensemble gains over the best single trial, on films that chose neither."""

    ensemble: float
    """AUC, the mean over halves."""
    single: float
    test: PairedTest
    """DeLong's, of the difference in AUC: the mean over halves, with the variance of a split's two halves together."""
    members: float
    """Different trials in the ensemble, the mean over halves."""


def greedy(labels: Labels, probability: Probabilities, most: int = MOST) -> list[int]:
    """The members in the order of their choice, the best single trial first; a trial may occur several times.

    By AUC; of equals, by the log loss of the mean probability. The list ends where the AUC is highest.
    """
    pool = sorted(range(len(probability)), key=lambda trial: -auc(labels, probability[trial]))[:POOL]
    members, total = [pool[0]], probability[pool[0]].copy()
    values = [auc(labels, total)]
    while len(members) < most:
        means = [(total + probability[trial]) / (len(members) + 1) for trial in pool]
        ranks = [(auc(labels, mean), -_log_loss(labels, mean)) for mean in means]
        place = max(range(len(pool)), key=ranks.__getitem__)
        members.append(pool[place])
        total += probability[pool[place]]
        values.append(ranks[place][0])
    return members[: 1 + values.index(max(values))]


def mean(probability: Probabilities, members: Sequence[int]) -> npt.NDArray[np.float64]:
    """The ensemble's probability of disease [N]."""
    together: npt.NDArray[np.float64] = probability[list(members)].mean(axis=0)
    return together


def weights(members: Sequence[int]) -> dict[int, float]:
    """Each member's share of the mean, the largest first."""
    return {trial: times / len(members) for trial, times in Counter(members).most_common()}


def estimate_gain(
    labels: Labels, patients: npt.NDArray[np.str_], probability: Probabilities, *, seed: int = 0
) -> Gain | None:
    """The gain of an ensemble chosen as `greedy` does; None where there are too few patients to halve."""
    split = halves(patients, labels, SPLITS, seed)
    if split is None:
        return None
    figures: list[tuple[float, float, float, float, int]] = []
    for choose, judge in both_ways(split):
        members = greedy(labels[choose], probability[:, choose])
        together, alone = mean(probability[:, judge], members), probability[members[0], judge]
        test = delong_test(labels[judge], together, alone, patients[judge])
        error = (test.difference.high - test.difference.low) / (2 * Z)
        both = auc(labels[judge], together), auc(labels[judge], alone)
        figures.append((*both, test.difference.value, error**2, len(set(members))))
    ensemble, single, difference, variance, distinct = np.mean(figures, axis=0)
    # the two halves of a split judge different films, so their mean has half the variance of either; the mean over many
    # splits of the same films has hardly less than that of one
    return Gain(
        ensemble=float(ensemble),
        single=float(single),
        test=_test(float(difference), math.sqrt(float(variance) / 2)),
        members=float(distinct),
    )


def _test(difference: float, error: float) -> PairedTest:
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    low, high = difference - Z * error, difference + Z * error
    return PairedTest(difference=Interval(value=difference, low=low, high=high), p_value=p_value)


def _log_loss(labels: Labels, probability: npt.NDArray[np.float64]) -> float:
    of_truth = np.clip(np.where(labels != 0, probability, 1 - probability), 1e-12, 1)
    return float(-np.log(of_truth).mean())
