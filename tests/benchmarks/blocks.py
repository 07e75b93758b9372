"""Kermany films judged on blocks of the archive that their networks did not see.

`train --folds blocks:3` gives each film the logits of a network that learned nothing of its block. Calibration and
thresholds come from two blocks and are judged on the third, three times. RAYSCAN_BENCH_BLOCKS: another number of them.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest

from models.engines.allocator import keep_memory
from models.films import Films, choose_films, join_films
from models.networks.classifier import ScanClassifier, in_batches, trained_classifier
from models.spec import CalibrationMethod
from models.statistics.bootstrap import count_patients, draws, figures, intervals
from models.statistics.calibration import Calibration, fit_calibration
from models.statistics.operating_points import operating_points
from models.statistics.robustness import CHANGES, perturbed
from pipelines.ingest.dataset import DatasetInfo, load_films, read_dataset_info
from tests.benchmarks.processes import watch
from tuning.recipes.choices import Folds
from tuning.recipes.fold_models import FoldModels, fit_folds
from tuning.recipes.recipe import Recipe, read_recipe
from tuning.toml_files import NEEDED

REAL, WEIGHTS = os.environ.get("RAYSCAN_REAL_DATA"), os.environ.get("RAYSCAN_REAL_WEIGHTS")
RECIPE = os.environ.get("RAYSCAN_BENCH_RECIPE", "mobilenet")
COUNT = int(os.environ.get("RAYSCAN_BENCH_BLOCKS", "3"))
"""All are read when imported: the tests' environment is cleaned of rayscan's variables."""
FILE: Final = "mobilenet_v2_0.35_imagenet_keras_notop.safetensors"
BLOCKS: Final = Folds(by="blocks", count=COUNT)
COPIED: Final = 100
"""Films of each block that are perturbed, in each way."""
DRAWS: Final = 300

needs_real_films = pytest.mark.skipif(
    not (REAL and WEIGHTS), reason="RAYSCAN_REAL_DATA and RAYSCAN_REAL_WEIGHTS name no films and weights"
)

Floats = npt.NDArray[np.float32]
Lock = Callable[[Films, Floats], Mapping[str, float]]
"""Films and their probabilities of disease [N] -> thresholds by name."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The films of train and val at 224 px, and the recipe to follow on them."""

    uri: str
    info: DatasetInfo
    films: Films
    recipe: Recipe

    def fit(self, recipe: Recipe) -> FoldModels:
        """The models of a recipe, one for each block."""
        return fit_folds(recipe, self.films, self.info, self.uri)


def prepared(folder: Path) -> Prepared:
    """Catalogue and prepare the real films in a folder."""
    assert REAL
    assert WEIGHTS
    keep_memory()
    rayscan = [str(Path(sys.executable).parent / "rayscan")]
    films_at, catalog, dataset = str(Path(REAL, "kermany_224")), str(folder / "catalog"), str(folder / "dataset")
    watch([*rayscan, "catalog", films_at, "--out", catalog, "--labels", "path"], os.environ)
    watch([*rayscan, "prepare", catalog, "--out", dataset, "--size", "224"], os.environ)
    recipe = replace(read_recipe(RECIPE), folds=BLOCKS)
    if recipe.weights == NEEDED:
        recipe = replace(recipe, weights=str(Path(WEIGHTS, FILE)))
    films = join_films([load_films(dataset, split) for split in ("train", "val")])
    return Prepared(uri=dataset, info=read_dataset_info(dataset), films=films, recipe=recipe)


def fold_of(models: FoldModels) -> npt.NDArray[np.int64]:
    """The block of each film [N], from 0, in the order of `models.films`."""
    return np.repeat(np.arange(len(models.held_out)), [len(one.films) for one in models.held_out])


def networks(models: FoldModels) -> list[ScanClassifier]:
    """The trained network of each block."""
    return [trained_classifier(one.fitted.spec, one.fitted.state_dict) for one in models.held_out]


def copies(
    models: FoldModels, by: Sequence[ScanClassifier] | None = None
) -> tuple[npt.NDArray[np.int64], list[Floats]]:
    """Indices [n] of films of all blocks, and for each change the logits [n, C] of their copies."""
    chosen = [choose_films(one.films.labels, COPIED) for one in models.held_out]
    parts = list(zip(by or networks(models), models.held_out, chosen, strict=True))
    logits = [
        np.concatenate(
            [
                in_batches(network.logits, perturbed(one.films.pixels[own], change)).numpy()
                for network, one, own in parts
            ]
        )
        for change in CHANGES
    ]
    starts = np.cumsum([0, *(len(one.films) for one in models.held_out)])[:-1]
    return np.concatenate([start + own for start, own in zip(starts, chosen, strict=True)]), logits


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Films whose calibration and thresholds come from the blocks they are not in."""

    probability: Floats
    """Of disease [N]."""
    thresholds: Mapping[str, npt.NDArray[np.float64]]
    """Operating point -> threshold of each film [N]."""
    copied: Sequence[Floats]
    """For each change the probabilities [n] of the copies."""


def judged(
    models: FoldModels,
    logits: Floats,
    *,
    method: CalibrationMethod = "platt",
    lock: Lock | None = None,
    few: npt.NDArray[np.int64] | None = None,
    copied: Sequence[Floats] = (),
    locked_on_copies: bool = False,
    inside: bool = False,
) -> Judged:
    """Calibrate logits [N, C] of all films, and those of copies of the films at `few`, and lock thresholds.

    `inside`: on the other half of the block's own patients. Each block has a network of its own, and how far apart two
    networks' logits lie, with the same ranking of films, says nothing about how good either is.
    """
    films, block = models.films, fold_of(models)
    part = 2 * block + _half(films.patients) if inside else block
    probability, thresholds = np.zeros(len(films), np.float32), dict[str, npt.NDArray[np.float64]]()
    of_copies = [np.zeros(len(each), np.float32) for each in copied]
    for number in np.unique(part):
        own = part == number
        others = (block == block[own][0]) & ~own if inside else ~own
        rest = np.flatnonzero(others)
        calibration = fit_calibration(logits[rest], films.labels[rest], method)
        of, shown = rest, [_of_disease(calibration, logits[rest])]
        if few is not None:
            here = own[few]
            for each, some in zip(of_copies, copied, strict=True):
                each[here] = _of_disease(calibration, some[here])
            if locked_on_copies:
                of = np.concatenate([rest, *[few[others[few]]] * len(copied)])
                shown += [_of_disease(calibration, some[others[few]]) for some in copied]
        probability[own] = _of_disease(calibration, logits[own])
        for name, threshold in (lock or as_built)(films.take(of), np.concatenate(shown)).items():
            thresholds.setdefault(name, np.zeros(len(films)))[own] = threshold
    return Judged(probability=probability, thresholds=thresholds, copied=of_copies)


def _half(patients: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """0 or 1 for each film [N], the same for all of a patient."""
    return np.array([crc32(patient.encode()) % 2 for patient in patients], dtype=np.int64)


def _of_disease(calibration: Calibration, logits: Floats) -> Floats:
    return 1 - calibration.probabilities(logits.copy())[:, 0]


def as_built(films: Films, probability: Floats) -> Mapping[str, float]:
    """The operating points that a bundle would get."""
    return operating_points(films.labels, probability, films.patients).thresholds


def show(name: str, films: Films, row: Judged, points: Sequence[str] = ()) -> float:
    """Print a line for each operating point; the calibration error."""
    drawn = draws(films.patients, count=DRAWS)
    people = count_patients(films.labels, films.patients)
    value: dict[str, float] = {}
    for point in points or list(row.thresholds):
        threshold = row.thresholds[point]
        value = {of: float(at[0]) for of, at in figures(films.labels, row.probability, threshold).items()}
        bounded = intervals(value, figures(films.labels, row.probability, threshold, drawn), people)
        told = [
            f"{of} {bounded[of].value:.4f} ({bounded[of].low:.4f} to {bounded[of].high:.4f})"
            for of in ("auc", "balanced_accuracy", "sensitivity", "specificity")
        ]
        print(
            f"{name}: {point}: {', '.join(told)}, log loss {value['log_loss']:.4f}, error {value['ece']:.4f}",
            flush=True,
        )
    return value["ece"]
