"""Verbs that make one model, and evaluate it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import output, preflight
from cluster.locations import location, named_or_file
from cluster.options import Config, IntendedUseFile, Json, NoFilms, Weights, given
from models.engines.machine import Precision
from models.spec import CalibrationMethod, PriorMethod
from pipelines.splits import Split
from tuning.recipes.choices import Select

if TYPE_CHECKING:
    from tuning.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """A recipe or a model, and what takes the place of the recipe's own values."""

    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|R.toml", help="How to make the model; `rayscan recipes` lists them.", parser=named_or_file
        ),
    ] = None
    model: Annotated[str | None, typer.Option(help="majority, mlp, cnn, or the name of a timm backbone.")] = None
    weights: Weights = None
    calibration: Annotated[CalibrationMethod | None, typer.Option(help="How probabilities are calibrated.")] = None
    select: Annotated[
        Select | None,
        typer.Option(help="Which model of a grid is kept: robust scores the five best on perturbed films (auc)."),
    ] = None
    size: Annotated[int | None, typer.Option(help="Side of the network's input (the data set's).")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the films (9).")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate (0.002).")] = None
    batch_size: Annotated[int | None, typer.Option(help="Films per step (32).")] = None
    augment: Annotated[float | None, typer.Option(help="Strength of augmentation; 0 is none (0.5).")] = None


def train(
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.", parser=location)],
    out: Annotated[str, typer.Option(help="Where the bundle goes.", parser=location)],
    options: RecipeOptions,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentation (0).")] = None,
    name: Annotated[str | None, typer.Option(help="What the model is called (the recipe's name).")] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            metavar="N|random|blocks|site[:N]",
            help="Train a model without each of so many folds of train and val, judge it on its fold, and keep them all"
            " as one model, the mean of their logits.",
        ),
    ] = None,
    intended_use: IntendedUseFile = None,
    no_films: NoFilms = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train one model, calibrate it, lock its operating points, and save it as a bundle. Flags win over the recipe."""
    from dataclasses import replace

    from tuning.recipes.choices import parse_folds
    from tuning.toml_files import read_intended_use

    recipe = replace(
        chosen_recipe(options, seed),
        **given(
            name=name,
            folds=None if folds is None else parse_folds(folds),
            intended_use=None if intended_use is None else read_intended_use(intended_use),
        ),
    )
    preflight.check_recipe(recipe, dataset)
    preflight.check_place(out)
    import tuning.recipes.train

    output.show(tuning.recipes.train.train(dataset, out, recipe, show_films=not no_films), as_json=json)


def crossvalidate(
    dataset: Annotated[
        str, typer.Argument(help="A data set made by `prepare`; its test films are not read.", parser=location)
    ],
    options: RecipeOptions,
    seed: Annotated[int | None, typer.Option(help="Seed of folds, weights, order and augmentation (0).")] = None,
    folds: Annotated[
        str | None,
        typer.Option(
            metavar="N|random|blocks|site[:N]",
            help="How many folds, one model each, and of what: patients at random, blocks of the archive's own order,"
            " or sites (random:5).",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="CV.html", help="Write the figures as a page too.", parser=location)
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Evaluate a recipe by cross-validation over patients, and on perturbed copies of their films."""
    recipe = chosen_recipe(options, seed)
    from tuning.recipes.choices import Folds, parse_folds

    dealt = Folds() if folds is None else parse_folds(folds)
    preflight.check_page(out)
    preflight.check_recipe(recipe, dataset)
    import tuning.recipes.crossvalidate

    result = tuning.recipes.crossvalidate.crossvalidate(dataset, recipe, report=out, folds=dealt)
    output.show(result if json else result.in_short(), as_json=json)


def recipes(config: Config = None, json: Json = False) -> None:
    """The recipes of `train`: what earlier projects on these films did, and today's best."""
    from tuning.recipes.recipe import read_recipe, recipe_names

    output.show({name: read_recipe(name).about for name in recipe_names()}, as_json=json)


def evaluate(
    bundle: Annotated[str, typer.Argument(help="A model.", parser=location)],
    dataset: Annotated[str, typer.Argument(help="A data set made by `prepare`.", parser=location)],
    split: Annotated[Split, typer.Option(help="Each evaluation on test is recorded in the bundle's ledger.")],
    prior_shift: Annotated[
        PriorMethod | None,
        typer.Option(help="Estimate the prevalence from the scores alone; assumes label shift."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="BUNDLE", help="Compare with another model; repeatable.", parser=location),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the engine, which must agree with float32 (fp32: the figures are those of any machine)."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="R.html", help="Write the pictures as a page too.", parser=location)
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Evaluate a model on one split: AUC, accuracy, sensitivity, specificity, with 95 % intervals."""
    preflight.check_page(out)
    preflight.check_evaluation([bundle, *(against or ())], dataset, split)
    import pipelines.evaluate

    if against:
        comparison = pipelines.evaluate.compare(
            [bundle, *against], dataset, split, report=out, **given(precision=precision)
        )
        output.show(comparison if json else comparison.in_short(), as_json=json)
        return
    entry = pipelines.evaluate.evaluate(
        bundle, dataset, split, report=out, prior_shift=prior_shift, **given(precision=precision)
    )
    output.show(entry, as_json=json)


def agree(
    bundle: Annotated[str, typer.Argument(help="A model.", parser=location)],
    dataset: Annotated[
        str,
        typer.Option(help="The data set it was made from, for its validation films.", parser=location),
    ],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N (a GPU if there is one).")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Compare this machine's engines with a model's float32, so that the fastest that agree may score with it.

    For a model that was made on another kind of machine, or in another version of OpenVINO or torch. Run it on the
    machine that will score. The result is kept beside the bundle, whose model_id does not change.
    """
    preflight.check_agreement(bundle, dataset)
    import pipelines.agree

    output.show(pipelines.agree.agree(bundle, dataset, device=device), as_json=json)


def chosen_recipe(options: RecipeOptions, seed: int | None = None) -> "Recipe":
    """The recipe that is named, or that of a model alone, with what the flags set in place of its own.

    Raises `InputError` where neither is named.
    """
    from dataclasses import replace

    from models.errors import InputError
    from tuning.recipes.recipe import Recipe, read_recipe

    if options.recipe is None and options.model is None:
        raise InputError("say what to train: --recipe NAME (see `rayscan recipes`), or --model NAME")
    recipe = read_recipe(options.recipe) if options.recipe else Recipe(model=str(options.model))
    chosen = given(
        model=options.model,
        weights=options.weights,
        calibrate=options.calibration,
        select=options.select,
        size=options.size,
    )
    training = given(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        augment=options.augment,
        seed=seed,
    )
    return replace(recipe, **chosen, training=replace(recipe.training, **training))
