"""Verbs that make one model, and judge it."""

from enum import StrEnum
from typing import Annotated

import typer

from cluster import output, preflight
from cluster.locations import location
from cluster.options import (
    Augment,
    BatchSize,
    Calibrate,
    Config,
    Epochs,
    Json,
    LearningRate,
    Model,
    NoFilms,
    RecipeName,
    Select,
    Size,
    Weights,
    chosen_recipe,
    given,
)


class Split(StrEnum):
    """The films a model is judged on."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class PriorShift(StrEnum):
    """How the share of disease among unlabelled films is estimated."""

    SAERENS = "saerens"
    BBSE = "bbse"


def train(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.", parser=location)],
    out: Annotated[str, typer.Option(help="Where the bundle goes.", parser=location)],
    recipe: RecipeName = None,
    model: Model = None,
    weights: Weights = None,
    calibration: Calibrate = None,
    select: Select = None,
    size: Size = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    augment: Augment = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation (0).")] = None,
    no_films: NoFilms = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train one model, calibrate it, lock its operating points, and save it as a bundle. Flags win over the recipe."""
    found = chosen_recipe(
        recipe=recipe,
        model=model,
        weights=weights,
        calibration=calibration,
        select=select,
        size=size,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
    )
    preflight.check_recipe(found, dataset)
    preflight.check_place(out)
    from tuning.recipes.train import train as run_train

    output.show(run_train(dataset, out, found, show_films=not no_films), as_json=json)


def crossvalidate(
    dataset: Annotated[
        str, typer.Argument(help="A data set made by `prepare`; its test films are not read.", parser=location)
    ],
    recipe: RecipeName = None,
    model: Model = None,
    weights: Weights = None,
    calibration: Calibrate = None,
    select: Select = None,
    size: Size = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    augment: Augment = None,
    seed: Annotated[int | None, typer.Option(help="Seed of folds, weights, order and augmentation (0).")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts of the patients; so many models are trained (5).")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="CV.html", help="Write the figures as a page too.", parser=location)
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Judge a recipe on patients held out, fold by fold, and on films made otherwise, before a model is made by it."""
    found = chosen_recipe(
        recipe=recipe,
        model=model,
        weights=weights,
        calibration=calibration,
        select=select,
        size=size,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
    )
    from tuning.recipes.fold_count import FOLDS, check_folds

    check_folds(FOLDS if folds is None else folds)
    preflight.check_page(out)
    preflight.check_recipe(found, dataset)
    from tuning.recipes.crossvalidate import crossvalidate as run_crossvalidate

    result = run_crossvalidate(dataset, found, report=out, **given(folds=folds))
    output.show(result if json else result.in_short(), as_json=json)


def recipes(config: Config = None, json: Json = False) -> None:
    """The recipes of `train`: what earlier projects on these films did, and today's best."""
    from tuning.recipes.recipe import read_recipe, recipe_names

    output.show({name: read_recipe(name).about for name in recipe_names()}, as_json=json)


def evaluate(
    bundle: Annotated[str, typer.Argument(help="A model.", parser=location)],
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.", parser=location)],
    split: Annotated[Split, typer.Option(help="Reading test is written into the bundle's ledger, each time.")],
    prior_shift: Annotated[
        PriorShift | None,
        typer.Option(help="Estimate the share of disease from the scores alone; assumes label shift."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE", help="Compare with another model; may be given again.", parser=location),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="R.html", help="Write the pictures as a page too.", parser=location)
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Judge a model on one split: AUC, accuracy, sensitivity, specificity, with 95 % intervals."""
    preflight.check_page(out)
    preflight.check_evaluation([bundle, *(against or ())], dataset, split.value)
    from pipelines.evaluate import compare
    from pipelines.evaluate import evaluate as run_evaluate

    if against:
        found = compare([bundle, *against], dataset, split.value, report=out)
        output.show(found if json else found.in_short(), as_json=json)
        return
    output.show(
        run_evaluate(bundle, dataset, split.value, report=out, prior_shift=prior_shift and prior_shift.value),
        as_json=json,
    )
