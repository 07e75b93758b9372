"""What changes of a recipe's training are worth, one at a time, on blocks of the archive that nothing was learned from.

Each change is trained on all blocks but one, three times, and beside it the recipe itself with another seed: what that
moves is no more than chance. Averages over test-time copies, over two seeds' logits and over their weights ("Model
soups", Wortsman et al. 2022) need no training of their own; one network taught by the two does ("Distilling the
Knowledge in a Neural Network", Hinton et al. 2015). Two hours and more with the recipe `mobilenet`; it prints the table
of LOG.md. RAYSCAN_BENCH_CHOICES names some of the changes: `smoothing,mixup`; `taught` needs `seed`.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from models.films import Films
from models.networks.classifier import BATCH, ScanClassifier, in_batches
from models.spec import ModelSpec
from models.statistics.bootstrap import Weights, aucs, draws
from models.statistics.robustness import CHANGES
from tests.benchmarks.blocks import Floats, Judged, copies, fold_of, judged, needs_real_films, networks, prepared, show
from tuning.recipes.fold_models import FoldModels
from tuning.recipes.promote import HeldOut
from tuning.training import loop
from tuning.training.learner import Learner
from tuning.training.settings import TrainSettings

CHOICES: Final[Mapping[str, Mapping[str, float]]] = {
    "seed": {"seed": 1},
    "smoothing": {"label_smoothing": 0.05},
    "mixup": {"mixup": 0.2},
    "longer": {"epochs": 18},
}
TAUGHT: Final = "taught"
WANTED = os.environ.get("RAYSCAN_BENCH_CHOICES", ",".join([*CHOICES, TAUGHT])).split(",")
ZOOMS: Final = ((1.0, 1.0), (0.95, 0.95), (0.95, 1.0), (1.0, 0.95))
"""Shares of width and height that a test-time copy shows."""
SOFTNESS: Final = 2.0
"""The temperature of what a teacher says; at 1 it would be as sure of its own films as their labels."""
CLIP: Final = 1e-6


@pytest.mark.bench
@needs_real_films
def test_changes_of_the_training_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(tmp_path)
    recipe = ready.recipe
    base = ready.fit(recipe)
    few, copied = copies(base)
    plain = judged(base, base.fitted.val_logits, few=few, copied=copied, inside=True)
    _print_row("the recipe", base, plain, few)

    def tell(name: str, logits: Floats, of_copies: Sequence[Floats] = ()) -> None:
        row = judged(base, logits, few=few, copied=of_copies, inside=True)
        assert np.isfinite(row.probability).all()
        _print_row(name, base, row, few, plain)

    tell("test-time copies", _zoomed(base, networks(base)))
    for name in [name for name in CHOICES if name in WANTED]:
        models = ready.fit(replace(recipe, training=replace(recipe.training, **CHOICES[name])))
        assert models.films.scan_ids.tolist() == base.films.scan_ids.tolist()
        logits, of_copies = models.fitted.val_logits, copies(models)[1]
        tell(name, logits, of_copies)
        if name == "seed":
            means = [(one + other) / 2 for one, other in zip(copied, of_copies, strict=True)]
            tell("mean of two seeds", (base.fitted.val_logits + logits) / 2, means)
            soup = _soup(base, models, ready.films)
            tell("weights of two seeds", _of_held_out(base, soup), copies(base, soup)[1])
            if TAUGHT in WANTED:
                with monkeypatch.context() as patched:
                    patched.setattr(loop, "Learner", _taught(_lessons([base, models], ready.films)))
                    pupils = ready.fit(replace(recipe, about="Taught by two seeds of itself."))
                tell("taught by two seeds", pupils.fitted.val_logits, copies(pupils)[1])
                pupils.kept.forget()
        models.kept.forget()
    base.kept.forget()


def _of_held_out(models: FoldModels, by: Sequence[ScanClassifier]) -> Floats:
    """Logits [N, C] of all films, each by the network of its block."""
    return np.concatenate(
        [in_batches(one.logits, held.films.pixels).numpy() for one, held in zip(by, models.held_out, strict=True)]
    )


def _zoomed(models: FoldModels, by: Sequence[ScanClassifier]) -> Floats:
    """The mean of the logits [N, C] over slightly enlarged and stretched copies of each film."""
    total = np.zeros_like(models.fitted.val_logits)
    for across, down in ZOOMS:
        parts = [
            in_batches(network.logits, np.stack([_part(film, across, down) for film in held.films.pixels])).numpy()
            for network, held in zip(by, models.held_out, strict=True)
        ]
        total += np.concatenate(parts) / len(ZOOMS)
    return total


def _part(film: npt.NDArray[np.uint8], across: float, down: float) -> npt.NDArray[np.uint8]:
    """The middle of a film, this share of its width and height, at the size of the film."""
    image = Image.fromarray(film)
    left, top = image.width * (1 - across) / 2, image.height * (1 - down) / 2
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(image.resize(image.size, Image.Resampling.BILINEAR, box=box))


def _soup(one: FoldModels, other: FoldModels, films: Films) -> list[ScanClassifier]:
    """For each block the mean of two networks' weights, its batch normalisation estimated anew."""
    soups = []
    for first, second, held in zip(networks(one), networks(other), one.held_out, strict=True):
        soup = copy.deepcopy(first)
        theirs = second.network.state_dict()
        soup.network.load_state_dict(
            {
                name: (value + theirs[name]) / 2 if value.is_floating_point() else value
                for name, value in first.network.state_dict().items()
            }
        )
        _estimate_normalisation(soup, _learned_from(films, held).pixels)
        soups.append(soup)
    return soups


def _learned_from(films: Films, held: HeldOut) -> Films:
    """The films that are not in a block."""
    return films.take(~np.isin(films.scan_ids, held.films.scan_ids))


Lesson = tuple[frozenset[str], Mapping[str, Floats]]
"""The films held out, and what the teacher says of each of the others: shares of the classes [C] by scan id."""


def _lessons(teachers: Sequence[FoldModels], films: Films) -> list[Lesson]:
    """For each block, what the mean of the teachers' networks for it says of the films that they learned from."""
    lessons: list[Lesson] = []
    for number, held in enumerate(teachers[0].held_out):
        seen = _learned_from(films, held)
        logits = [in_batches(networks(models)[number].logits, seen.pixels) for models in teachers]
        shares = torch.softmax(torch.stack(logits).mean(dim=0) / SOFTNESS, dim=1).numpy()
        lessons.append((frozenset(held.films.scan_ids), dict(zip(seen.scan_ids, shares, strict=True))))
    return lessons


def _taught(lessons: Sequence[Lesson]) -> type[Learner]:
    """A learner whose targets are, in equal parts, the label and what the teacher of the same films says."""

    class Pupil(Learner):
        def __init__(self, spec: ModelSpec, settings: TrainSettings, train: Films, *others: Any, **named: Any) -> None:
            super().__init__(spec, settings, train, *others, **named)
            [said] = [shares for held_out, shares in lessons if held_out.isdisjoint(train.scan_ids)]
            soft = torch.tensor(np.stack([said[scan] for scan in train.scan_ids]))
            hard = nn.functional.one_hot(self.labels, len(spec.classes)).float()
            self.labels = (hard + soft) / 2

    return Pupil


@torch.no_grad()
def _estimate_normalisation(classifier: ScanClassifier, pixels: npt.NDArray[np.uint8]) -> None:
    """Set the statistics of batch normalisation to their mean over batches of these films [N, H, W]."""
    norms = [module for module in classifier.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the cumulative mean
        norm.train()
    order = np.random.default_rng(0).permutation(len(pixels))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        classifier.logits(torch.tensor(pixels[order[start : start + BATCH]]))
    classifier.eval()


def _print_row(
    name: str, models: FoldModels, row: Judged, few: npt.NDArray[np.int64], beside: Judged | None = None
) -> None:
    """Print the figures of a row, on copies too, and its differences from another with 95 % intervals over patients."""
    films, block = models.films, fold_of(models)
    show(name, films, row, ["balanced"])
    once = np.ones((1, len(films)))
    print(f"{name}: AUC in the mean of blocks {_auc(films.labels, row.probability, once, block)[0]:.4f}", flush=True)
    if row.copied:
        labels, once, of = films.labels[few], np.ones((1, len(few))), block[few]
        found = [float(_auc(labels, each, once, of)[0]) for each in row.copied]
        losses = [float(-_log_scores(labels, each).mean()) for each in row.copied]
        worst = list(CHANGES)[int(np.argmin(found))]
        told = f"AUC {np.mean(found):.4f}, worst {min(found):.4f} ({worst}), log loss {np.mean(losses):.4f}"
        print(f"{name}: on copies: {told}", flush=True)
    if beside is None:
        return
    drawn = draws(films.patients, count=2000)
    ours, theirs = (_auc(films.labels, each.probability, drawn, block) for each in (row, beside))
    _print_difference(f"{name}: AUC", ours - theirs)
    scores = _log_scores(films.labels, row.probability) - _log_scores(films.labels, beside.probability)
    _print_difference(f"{name}: log loss", -(drawn @ scores) / drawn.sum(axis=1))


def _auc(
    labels: npt.NDArray[np.int64], scores: Floats, weights: Weights, block: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The mean over blocks of the AUC within each, for each row of `weights`."""
    blocks = [block == number for number in np.unique(block)]
    return np.mean([aucs(labels[own], scores[own], weights[:, own]) for own in blocks], axis=0)


def _print_difference(what: str, drawn: npt.NDArray[np.float64]) -> None:
    low, middle, high = np.percentile(drawn, [2.5, 50, 97.5])
    print(f"{what} beside the recipe's {middle:+.5f} ({low:+.5f} to {high:+.5f})", flush=True)


def _log_scores(labels: npt.NDArray[np.int64], probability: Floats) -> npt.NDArray[np.float64]:
    of_truth = np.where(labels > 0, probability, 1 - probability).astype(np.float64)
    return np.log(np.clip(of_truth, CLIP, 1))
