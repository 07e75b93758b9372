"""What calibration, thresholds and their bounds are worth on blocks of the archive that nothing was learned from.

It prints the table of LOG.md. An hour with the recipe `mobilenet`; RAYSCAN_BENCH_RECIPE names another.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from models.films import Films
from tests.benchmarks.blocks import Floats, copies, judged, needs_real_films, prepared, show


@pytest.mark.bench
@needs_real_films
def test_what_is_locked_holds_on_a_block_held_out(tmp_path: Path) -> None:
    ready = prepared(tmp_path)
    models = ready.fit(ready.recipe)
    logits = models.fitted.val_logits
    few, copied = copies(models)
    rows = {
        "Platt, middle of the plateau, bounds": judged(models, logits),
        "temperature alone": judged(models, logits, method="temperature"),
        "lowest of equal thresholds": judged(models, logits, lock=_lowest),
        "promises without bounds": judged(models, logits, lock=_unbound),
        "locked on perturbed copies, too": judged(models, logits, few=few, copied=copied, locked_on_copies=True),
    }
    models.kept.forget()
    found = {name: show(name, models.films, row) for name, row in rows.items()}
    assert found["Platt, middle of the plateau, bounds"] < found["temperature alone"]


def _lowest(films: Films, probability: Floats) -> Mapping[str, float]:
    cuts = np.unique(probability)
    below = [np.searchsorted(np.sort(probability[films.labels == label]), cuts) for label in (0, 1)]
    gain = below[0] / (films.labels == 0).sum() - below[1] / (films.labels == 1).sum()
    return {"balanced": float(cuts[np.argmax(gain)])}


def _unbound(films: Films, probability: Floats) -> Mapping[str, float]:
    """The points that keep the promise on the films that chose them."""
    ill, well = (np.sort(probability[films.labels == label]) for label in (1, 0))
    return {"rule_out": float(ill[int(0.02 * len(ill))]), "rule_in": float(well[int(np.ceil(0.98 * len(well)))])}
