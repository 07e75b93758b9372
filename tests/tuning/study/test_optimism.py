"""What a choice among many models flatters is estimated, from their predictions alone."""

from functools import partial
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from models.statistics.metrics import Labels, Scores, auc
from tuning.study.optimism import estimate, halves
from tuning.training.objectives import log_score, sensitivity_at

SHIFT = 2.0
TRUE_AUC = NormalDist().cdf(SHIFT / np.sqrt(2))


def equals(
    seed: int, models: int = 30, films: int = 600
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_], npt.NDArray[np.float64]]:
    """Models of one true AUC, which share half of their errors, the best on these films first."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(films) % 4 != 0).astype(np.int64)
    shared, own = rng.normal(size=films), rng.normal(size=(models, films))
    scores = SHIFT * labels + np.sqrt(0.5) * (shared + own)
    ranked = sorted(scores, key=lambda of_model: -auc(labels, of_model))
    return labels, np.arange(films).astype(str), np.array(ranked)


def test_among_equals_the_best_claims_too_much_and_the_estimate_does_not() -> None:
    found = [estimate(*equals(seed), seed=seed) for seed in range(8)]
    claimed = np.mean([of[0].auc for of in found if of])
    expected = np.mean([of[0].elsewhere for of in found if of])
    assert len([of for of in found if of]) == 8
    assert claimed > TRUE_AUC + 0.012
    assert expected == pytest.approx(TRUE_AUC, abs=0.008)


def test_a_model_far_ahead_is_chosen_by_every_half_and_flatters_nobody() -> None:
    labels, patients, scores = equals(0, models=6)
    scores[0] += 3 * labels
    estimated = estimate(labels, patients, scores)
    assert estimated is not None
    found, chosen = estimated
    assert chosen.tolist() == [1, 0, 0, 0, 0, 0]
    assert found.auc == auc(labels, scores[0])
    assert abs(found.optimism) < 0.001
    assert found.to_json()["optimism"] == found.optimism
    assert (found.trials, found.films, found.patients) == (6, 600, 600)


def test_a_choice_by_another_objective_is_worth_the_auc_of_what_that_objective_chooses() -> None:
    """Of the two, one is better over all, the other where few of the healthy may be called diseased."""
    rng = np.random.default_rng(3)
    labels, patients, _ = equals(3)
    clear = (rng.random(600) < 0.83) & (labels == 1)
    overall = 2.5 * labels + rng.normal(size=600)
    picky = np.where(clear, 10.0, 0.0) + rng.normal(size=600)
    scores = np.array([picky, overall])
    judge = partial(sensitivity_at, specificity=0.95)
    assert auc(labels, overall) > auc(labels, picky)
    assert judge(labels, overall) < judge(labels, picky)
    estimated = estimate(labels, patients, scores, judge=judge)
    assert estimated is not None
    found, chosen = estimated
    assert chosen[0] > 0.8
    assert found.auc == auc(labels, picky)
    assert found.elsewhere == pytest.approx(found.auc, abs=0.01)


class TestCopies:
    """600 films, and after them three copies of each sixth."""

    ORIGINALS = np.concatenate([np.arange(600), *[np.arange(0, 600, 6)] * 3])

    def test_a_choice_by_copies_too_is_worth_the_auc_of_what_they_choose(self) -> None:
        """One is better on films as they are, but its copies say nothing; on the other's copies nothing changes."""
        rng = np.random.default_rng(4)
        labels, patients, _ = equals(4)
        steady, sharp = (SHIFT * labels + deviation * rng.normal(size=600) for deviation in (1.0, 0.7))
        scores = np.array([steady, sharp])[:, self.ORIGINALS]
        scores[1, 600:] = rng.normal(size=300)
        as_they_are = estimate(labels, patients, scores[:, :600], judge=log_score)
        with_copies = estimate(labels, patients, scores, judge=log_score, originals=self.ORIGINALS)
        assert as_they_are is not None
        assert with_copies is not None
        assert as_they_are[1][1] > 0.9
        found, chosen = with_copies
        assert (found.copies, as_they_are[0].copies) == (True, False)
        assert chosen[0] > 0.9
        assert found.auc == auc(labels, steady)
        assert found.elsewhere == pytest.approx(found.auc, abs=0.005)

    def test_a_half_has_the_copies_of_its_own_films(self) -> None:
        labels, patients, _ = equals(5)
        seen = []

        def judge(labels: Labels, odds: Scores, copies: npt.NDArray[np.bool_] | None) -> float:
            assert copies is not None
            films, copied = odds[~copies], odds[copies]
            assert sorted(copied) == sorted([film for film in films if film % 6 == 0] * 3)
            seen.append(len(films))
            return 0.0

        scores = self.ORIGINALS[None].astype(np.float64)
        assert estimate(labels, patients, scores, judge=judge, originals=self.ORIGINALS) is not None
        assert set(seen) == {300}


def test_one_of_the_few_best_flatters_less_than_the_best() -> None:
    labels, patients, scores = equals(1)
    one, five = estimate(labels, patients, scores), estimate(labels, patients, scores, top=5)
    assert one is not None
    assert five is not None
    assert five[0].auc < one[0].auc
    assert five[0].optimism < one[0].optimism
    assert one[1].sum() == pytest.approx(1)


def test_halves_keep_patients_together_and_have_as_many_of_either_kind() -> None:
    rng = np.random.default_rng(0)
    of_patient = rng.random(50) < 0.3
    films = rng.integers(0, 50, 400)
    patients, labels = films.astype(str), (of_patient[films] * 2).astype(np.int64)
    split = halves(patients, labels, 20, seed=0)
    assert split is not None
    for first in split:
        mine, others = set(patients[first]), set(patients[~first])
        assert not mine & others
        diseased = {str(patient) for patient in np.flatnonzero(of_patient)}
        assert abs(len(mine & diseased) - len(others & diseased)) <= 1
        assert abs(len(mine) - len(others)) <= 2
    assert len({first.tobytes() for first in split}) == 20


def test_too_few_patients_to_halve() -> None:
    labels = np.array([0] * 3 + [1] * 40)
    patients = np.arange(43).astype(str)
    assert halves(patients, labels, 5, seed=0) is None
    assert estimate(labels, patients, np.random.default_rng(0).random((4, 43))) is None
    labels[3] = 0
    assert halves(patients, labels, 5, seed=0) is not None
    same = patients.copy()
    same[:4] = "one patient"
    assert halves(same, labels, 5, seed=0) is None, "four films of one patient are no four patients"
