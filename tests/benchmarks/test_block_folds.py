"""What calibration, thresholds and their bounds are worth on blocks of the archive that nothing was learned from.

`train --folds blocks:3` gives each film the logits of a network that did not see its block. Here calibration and
thresholds come from two blocks and are judged on the third, three times. It prints the table of LOG.md. An hour with
the recipe `mobilenet`; RAYSCAN_BENCH_RECIPE names another.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.engines.allocator import keep_memory
from models.films import Films, choose_films, join_films
from models.networks.classifier import in_batches, trained_classifier
from models.spec import CalibrationMethod
from models.statistics.bootstrap import count_patients, draws, figures, intervals
from models.statistics.calibration import fit_calibration
from models.statistics.operating_points import operating_points
from models.statistics.robustness import CHANGES, perturbed
from pipelines.ingest.dataset import load_films, read_dataset_info
from tests.benchmarks.processes import watch
from tuning.recipes.choices import Folds
from tuning.recipes.fold_models import FoldModels, fit_folds
from tuning.recipes.recipe import read_recipe
from tuning.toml_files import NEEDED

REAL, WEIGHTS = os.environ.get("RAYSCAN_REAL_DATA"), os.environ.get("RAYSCAN_REAL_WEIGHTS")
RECIPE = os.environ.get("RAYSCAN_BENCH_RECIPE", "mobilenet")
"""All are read when imported: the tests' environment is cleaned of rayscan's variables."""
FILE = "mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
BLOCKS = Folds(by="blocks", count=3)
COPIED = 100
"""Films of each block that are perturbed, in each way."""

Floats = npt.NDArray[np.float32]
Lock = Callable[[Films, Floats], Mapping[str, float]]
"""Films and their probabilities of disease [N] -> thresholds by name."""


@pytest.mark.bench
@pytest.mark.skipif(
    not (REAL and WEIGHTS), reason="RAYSCAN_REAL_DATA and RAYSCAN_REAL_WEIGHTS name no films and weights"
)
def test_what_is_locked_holds_on_a_block_held_out(tmp_path: Path) -> None:
    assert REAL
    assert WEIGHTS
    keep_memory()
    rayscan = [str(Path(sys.executable).parent / "rayscan")]
    films_at, catalog, dataset = str(Path(REAL, "kermany_224")), str(tmp_path / "catalog"), str(tmp_path / "dataset")
    watch([*rayscan, "catalog", films_at, "--out", catalog, "--labels", "path"], os.environ)
    watch([*rayscan, "prepare", catalog, "--out", dataset, "--size", "224"], os.environ)
    recipe = replace(read_recipe(RECIPE), folds=BLOCKS)
    if recipe.weights == NEEDED:
        recipe = replace(recipe, weights=str(Path(WEIGHTS, FILE)))
    films = join_films([load_films(dataset, split) for split in ("train", "val")])
    models = fit_folds(recipe, films, read_dataset_info(dataset), dataset)
    few, copies = _copies(models)
    rows = {
        "Platt, middle of the plateau, bounds": _judged(models, "platt", _as_built),
        "temperature alone": _judged(models, "temperature", _as_built),
        "lowest of equal thresholds": _judged(models, "platt", _lowest),
        "promises without bounds": _judged(models, "platt", _unbound),
        "locked on perturbed copies, too": _judged(models, "platt", _as_built, few, copies),
    }
    models.kept.forget()
    found = {name: _shown(name, models.films, *row) for name, row in rows.items()}
    assert found["Platt, middle of the plateau, bounds"] < found["temperature alone"]


def _fold_of(models: FoldModels) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(models.held_out)), [len(one.films) for one in models.held_out])


def _copies(models: FoldModels) -> tuple[npt.NDArray[np.int64], list[Floats]]:
    """Indices [n] of films of all blocks, and for each change the logits [n, C] of their copies."""
    chosen = [choose_films(one.films.labels, COPIED) for one in models.held_out]
    networks = [trained_classifier(one.fitted.spec, one.fitted.state_dict) for one in models.held_out]
    parts = list(zip(networks, models.held_out, chosen, strict=True))
    copies = [
        np.concatenate(
            [
                in_batches(network.logits, perturbed(one.films.pixels[own], change)).numpy()
                for network, one, own in parts
            ]
        )
        for change in CHANGES
    ]
    starts = np.cumsum([0, *(len(one.films) for one in models.held_out)])[:-1]
    return np.concatenate([start + own for start, own in zip(starts, chosen, strict=True)]), copies


def _judged(
    models: FoldModels,
    method: CalibrationMethod,
    lock: Lock,
    few: npt.NDArray[np.int64] | None = None,
    copies: list[Floats] | None = None,
) -> tuple[Floats, dict[str, npt.NDArray[np.float64]]]:
    """Probabilities [N], and thresholds [N] by name, each film's from the blocks it is not in."""
    films, logits, fold_of = models.films, models.fitted.val_logits, _fold_of(models)
    probability, thresholds = np.zeros(len(films), np.float32), dict[str, npt.NDArray[np.float64]]()
    for fold in range(len(models.held_out)):
        rest, own = np.flatnonzero(fold_of != fold), fold_of == fold
        calibration = fit_calibration(logits[rest], films.labels[rest], method)
        of, shown = rest, [logits[rest]]
        if few is not None and copies is not None:
            used = fold_of[few] != fold
            of = np.concatenate([rest, *[few[used]] * len(copies)])
            shown += [of_change[used] for of_change in copies]
        chances = np.concatenate([1 - calibration.probabilities(each.copy())[:, 0] for each in shown])
        probability[own] = 1 - calibration.probabilities(logits[own].copy())[:, 0]
        for name, threshold in lock(films.take(of), chances).items():
            thresholds.setdefault(name, np.zeros(len(films)))[own] = threshold
    return probability, thresholds


def _as_built(films: Films, probability: Floats) -> Mapping[str, float]:
    return operating_points(films.labels, probability, films.patients).thresholds


def _lowest(films: Films, probability: Floats) -> Mapping[str, float]:
    cuts = np.unique(probability)
    below = [np.searchsorted(np.sort(probability[films.labels == label]), cuts) for label in (0, 1)]
    gain = below[0] / (films.labels == 0).sum() - below[1] / (films.labels == 1).sum()
    return {"balanced": float(cuts[np.argmax(gain)])}


def _unbound(films: Films, probability: Floats) -> Mapping[str, float]:
    """The points that keep the promise on the films that chose them."""
    ill, well = (np.sort(probability[films.labels == label]) for label in (1, 0))
    return {"rule_out": float(ill[int(0.02 * len(ill))]), "rule_in": float(well[int(np.ceil(0.98 * len(well)))])}


def _shown(name: str, films: Films, probability: Floats, thresholds: Mapping[str, npt.NDArray[np.float64]]) -> float:
    """Print a row for each point; the calibration error."""
    drawn = draws(films.patients, count=300)
    people = count_patients(films.labels, films.patients)
    value: dict[str, float] = {}
    for point, threshold in thresholds.items():
        value = {of: float(at[0]) for of, at in figures(films.labels, probability, threshold).items()}
        bounded = intervals(value, figures(films.labels, probability, threshold, drawn), people)
        told = [
            f"{of} {bounded[of].value:.4f} ({bounded[of].low:.4f} to {bounded[of].high:.4f})"
            for of in ("auc", "balanced_accuracy", "sensitivity", "specificity")
        ]
        print(f"{name}: {point}: {', '.join(told)}, log loss {value['log_loss']:.4f}, error {value['ece']:.4f}")
    return value["ece"]
