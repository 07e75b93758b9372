"""A recipe followed on some films: every combination of its grid is trained, and one is kept."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.engines.machine import choose_device
from models.films import Films
from models.networks.zoo import build, layer_groups
from models.spec import ModelSpec, Scalar
from models.statistics.calibration import UNCALIBRATED
from pipelines.bundles import cache_folder
from pipelines.contracts import LABELS
from pipelines.errors import InputError
from tuning.recipes.promote import calibrated, scorer
from tuning.recipes.recipe import Recipe, spec_of
from tuning.recipes.selection import TOP, Score, most_robust
from tuning.training.films import TrainingFilms
from tuning.training.head_settings import HeadSettings
from tuning.training.loop import EpochReport, Fitted, fit
from tuning.training.losses import cross_entropy
from tuning.training.start import fit_installed_head, pretrained_start, seeded_network

log = logging.getLogger("rayscan")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The model that a recipe gives for some films."""

    best: Fitted
    chosen: Mapping[str, Scalar]
    """Its combination of the grid; empty without a grid."""
    tried: list[dict[str, object]]
    """Every combination: `parameters`, `val_auc`, `seconds`."""
    selection: list[dict[str, object]]
    """Figures of the few best on perturbed films: `parameters`, `auc`, `mean_auc`, `worst`; empty if not measured."""


def fit_recipe(recipe: Recipe, films: TrainingFilms) -> Trained:
    """Train by a recipe; the validation films choose the epoch and the combination of a grid.

    `films` have the recipe's classes, see `relabelled`.
    Raises `InputError` for an unknown model or a size above the data set's.
    """
    combinations = recipe.combinations()
    tried: list[dict[str, object]] = []
    best: list[tuple[Fitted, dict[str, Scalar]]] = []
    for number, combination in enumerate(combinations, 1):
        fitted = _fitted(recipe.at(combination), films)
        parameters = {**recipe.parameters, **combination}
        tried.append({"parameters": parameters, "val_auc": fitted.best.val_auc, "seconds": fitted.seconds})
        named = ", ".join(f"{name} {value}" for name, value in combination.items()) or recipe.model
        log.info(
            "%d of %d, %s: validation AUC %.4f, %.1f s",
            *(number, len(combinations), named, fitted.best.val_auc, fitted.seconds),
        )
        # sorting keeps the order of equals: the first of them wins
        best = sorted([*best, (fitted, combination)], key=lambda pair: -pair[0].best.val_auc)[:TOP]
    place = 0
    results: list[dict[str, Any]] = []
    if recipe.select == "robust":
        place, results = most_robust([_uncalibrated(fitted) for fitted, _ in best], films.val)
    selection = [{"parameters": combination, **result} for (_, combination), result in zip(best, results, strict=False)]
    return Trained(best=best[place][0], chosen=best[place][1], tried=tried, selection=selection)


def _uncalibrated(fitted: Fitted) -> Score:
    return scorer(calibrated(fitted, UNCALIBRATED), choose_device(fitted.settings.device))


def relabelled(films: Films, classes: tuple[str, ...]) -> Films:
    """The films with labels of these classes: unchanged for LABELS, else by subtype; films of no class are left out.

    Raises `InputError` if a class has no film.
    """
    if classes == LABELS:
        return films
    names = np.where(films.labels == 0, LABELS[0], np.char.upper(films.subtypes))
    missing = [name for name in classes if not (names == name).any()]
    if missing or classes[0] != LABELS[0]:
        have = ", ".join(sorted({str(name) for name in names if name} - {LABELS[0]})) or "none"
        raise InputError(
            f"no film is of class {', '.join(missing)}; the first class is {LABELS[0]}, kinds here are {have}"
        )
    kept = np.isin(names, classes)
    if not kept.all():
        log.info("%d films are of none of the classes %s; they are left out", int((~kept).sum()), ", ".join(classes))
    order = {name: index for index, name in enumerate(classes)}
    labels = np.array([order[str(name)] for name in names[kept]], dtype=np.int64)
    return replace(films.take(kept), labels=labels)


def _fitted(recipe: Recipe, films: TrainingFilms) -> Fitted:
    """Train one model."""
    spec = spec_of(recipe, films.info, films.uri)
    settings = recipe.training
    if recipe.weights is None:
        return fit(spec, films.train, films.val, settings)
    head = replace(recipe.head, seed=settings.seed)
    if recipe.learn == "head":
        return _new_head(recipe, head, spec, films)
    start = pretrained_start(
        spec,
        recipe.weights,
        films,
        head=head if recipe.head_first else None,
        seed=settings.seed,
        folder=str(cache_folder("features")),
        device=choose_device(settings.device),
    )
    if recipe.learn != "all":
        frozen = max(0, len(layer_groups(build(spec))) - recipe.learn)
        settings = replace(settings, frozen_groups=frozen)
    return fit(spec, films.train, films.val, settings, weights=start)


def _new_head(recipe: Recipe, head: HeadSettings, spec: ModelSpec, films: TrainingFilms) -> Fitted:
    """A frozen backbone with a new classifier, as a trained model."""
    assert recipe.weights is not None
    network, _ = seeded_network(spec, recipe.weights, recipe.training.seed)
    started = time.perf_counter()
    folder = str(cache_folder("features"))
    device = choose_device(recipe.training.device)
    fitted, train_logits = fit_installed_head(network, spec, head, films, folder=folder, device=device)
    seconds = time.perf_counter() - started
    report = EpochReport(
        epoch=1,
        train_loss=_loss(train_logits, films.train),
        val_auc=fitted.val_auc,
        val_loss=_loss(fitted.val_logits, films.val),
        seconds=seconds,
    )
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    return Fitted(
        spec=spec,
        settings=replace(recipe.training, epochs=1),
        state_dict=state,
        val_logits=fitted.val_logits,
        history=(report,),
        best=report,
        seconds=seconds,
    )


def _loss(logits: object, films: Films) -> float:
    return float(cross_entropy(torch.as_tensor(logits), torch.tensor(films.labels)))
