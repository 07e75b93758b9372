"""Of the best trials, the one that lives on a shortcut is passed over when films made otherwise are asked."""

import numpy as np

from models.films import Films
from tests.models.statistics.test_robustness import by_grain, by_what_is_shown, coded_films
from tuning.recipes.selection import most_robust


def test_the_model_that_keeps_its_rank_on_changed_films_is_taken() -> None:
    pixels, labels = coded_films()
    names = np.arange(len(labels)).astype(str)
    val = Films(pixels=pixels, labels=labels, patients=names, subtypes=np.full(len(labels), ""), scan_ids=names)
    place, told = most_robust([by_grain, by_what_is_shown], val)
    assert place == 1
    assert told[0]["auc"] > told[1]["auc"], "by the films as they are, the other is better"
    assert told[0]["mean_balanced_accuracy"] < told[1]["mean_balanced_accuracy"]
    same, _ = most_robust([by_what_is_shown, by_what_is_shown], val)
    assert same == 0, "of equals the one named first"
