"""A named way to make a model: architecture, start, training and calibration in one TOML file.

    about = "…"                  one line
    name = "…"                   what its models are called; by default the name of this file
    model = "cnn"                a name of models/networks/zoo.py
    size = 224                   side of the network's input; the data set's where it is smaller
    normalise = "film"           as in models/spec.py
    calibrate = "platt"          as in models/statistics/calibration.py; by default platt where training weights the
                                 classes, which shifts the log-odds, else temperature
    learn = "all"                which layers learn if the network starts from weights: "all", "head" (a frozen
                                 backbone, whose features are computed once), or a number of its last groups of layers
    head_first = false           whether a classifier is fitted to frozen features before all layers learn
    select = "auc"               which model of a grid is kept: the best validation AUC; or "robust": of the five best,
                                 the best on perturbed copies of the films (tuning/recipes/selection.py)
    weights = "w.safetensors"    what the network starts from: a URI, a file (a relative path is one of this file's
                                 folder), `imagenet` for those timm publishes, or "needed" if the recipe makes no
                                 sense from random weights, so that the caller must name them
    classes = ["NORMAL", "BACTERIA", "VIRUS"]   to distinguish kinds of pneumonia; by default NORMAL and PNEUMONIA
    intended_use = { age_years = [1, 5], countries = ["CN"] }   whose films its models are for, where the training films
                                 do not tell (models/intended_use.py has the names)
    folds = "blocks:5"           train a model without each of so many folds, calibrate and judge on what these say of
                                 the films held out, and keep them as one (tuning/recipes/fold_models.py)
    [parameters]                 of the architecture
    [training]                   of tuning/training/settings.py
    [head]                       l2 and steps of tuning/training/head_settings.py, for learn = "head" and for head_first
    [grid]                       parameters, also those of [head], with a list of values each: every combination
                                 is trained, one is kept

Those that come with rayscan are in tuning/recipes/: what earlier projects on these films did, and today's best. A
search writes the recipes of its best trials to STUDY/recipes/.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from models.errors import InputError
from models.intended_use import ANY, IntendedUse, state
from models.messages import did_you_mean
from models.spec import CALIBRATION_METHODS, CalibrationMethod, ModelSpec, Normalise, Scalar
from pipelines.ingest.dataset_info import DatasetInfo
from tuning.recipes.choices import SELECTS, Folds, Select, parse_folds
from tuning.toml_files import NEEDED, absolute, folder_of, names, read_toml, toml_lines
from tuning.training.head_settings import HeadSettings
from tuning.training.settings import TrainSettings

HEAD: Final = ("l2", "steps")
"""The settings of a head that a recipe may have. No hidden layer: it does not fit into the network's classifier."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is made."""

    model: str
    """`majority`, `mlp`, `cnn`, or the name of a timm backbone."""
    about: str = ""
    name: str = ""
    """What its models are called; empty: after their architecture."""
    size: int | None = None
    """Side of the network's input in pixels; None: that of the data set."""
    normalise: Normalise = "film"
    calibrate: CalibrationMethod | None = None
    """None: platt where training makes the classes count alike, which shifts the log-odds of disease, else temperature.
    """
    learn: Literal["all", "head"] | int = "all"
    """What learns if the network starts from weights: all, the classifier alone, or this number of its last groups."""
    head_first: bool = False
    """Before all layers learn, the classifier is fitted to frozen features, as `learn = "head"` does: a random one
    first distorts the pretrained layers, which costs most on films unlike the training films (Kumar et al. 2022,
    "Fine-tuning can distort pretrained features and underperform out-of-distribution")."""
    weights: str | None = None
    """URI or path of pretrained weights, `imagenet` for those timm publishes, or `needed`: the caller must say."""
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")
    """The classes; kinds of disease are named after the catalogue's subtypes: NORMAL, BACTERIA, VIRUS."""
    intended_use: IntendedUse = ANY
    """What a person states of it; the rest is what the training films show."""
    folds: Folds | None = None
    """Folds that each have a model of their own, of which one is made; None: one model, judged on the split val."""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    training: TrainSettings = field(default_factory=TrainSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    """Settings of the classifier on frozen features; its seed is that of the training."""
    grid: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    select: Select = "auc"
    """Which combination of the grid is kept: the best validation AUC, or of the five best the most robust."""

    def __post_init__(self) -> None:
        if self.calibrate not in {None, *CALIBRATION_METHODS}:
            raise InputError(f"unknown calibration {self.calibrate!r}; choose {', '.join(CALIBRATION_METHODS)}")
        if not (self.learn in {"all", "head"} or (type(self.learn) is int and self.learn > 0)):
            raise InputError(f'learn={self.learn!r} must be "all", "head" or a number of groups of layers above 0')
        if self.head_first and (self.weights is None or self.learn == "head"):
            raise InputError('head_first needs weights to start from, and more to learn than learn = "head"')
        if any(
            not isinstance(values, Sequence) or isinstance(values, str) or not values for values in self.grid.values()
        ):
            raise InputError("each parameter of a grid needs a list of values")
        if self.select not in SELECTS:
            raise InputError(f"unknown selection {self.select!r}; choose {' or '.join(SELECTS)}")
        if self.select != "auc" and not self.grid:
            raise InputError(f"there is nothing to select {self.select} from: the recipe has no [grid]")

    @property
    def fits_head(self) -> bool:
        """Whether a classifier is fitted to frozen features, alone or before all layers learn."""
        return self.learn == "head" or self.head_first

    def combinations(self) -> list[dict[str, Scalar]]:
        """Every combination of the grid; a single empty one without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def at(self, combination: Mapping[str, Scalar]) -> "Recipe":
        """The recipe of one combination of the grid."""
        head_values = {name: value for name, value in combination.items() if self.fits_head and name in HEAD}
        parameters = {name: value for name, value in combination.items() if name not in head_values}
        head: HeadSettings = replace(self.head, **head_values)  # type: ignore[arg-type] # it checks them
        return replace(self, head=head, parameters={**self.parameters, **parameters}, grid={}, select="auc")


def recipe_names() -> list[str]:
    """The recipes that come with rayscan."""
    return names("recipe")


def read_recipe(name: str) -> Recipe:
    """The recipe of this name, or of the TOML file at this path. Raises `InputError` if there is none."""
    table = read_toml("recipe", name)
    table["name"] = table.get("name") or PurePosixPath(name).stem
    if isinstance(table.get("weights"), str):
        table["weights"] = absolute(table["weights"], folder_of(name))
    try:
        return _parsed(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def require_weights(recipe: Recipe) -> None:
    """Raise `InputError` if a recipe starts from weights that were not named."""
    if recipe.weights == NEEDED:
        raise InputError(
            "this recipe starts from pretrained weights: name their file or URI with --weights, or `imagenet` for those"
            " timm publishes, where there is a network"
        )


def spec_of(recipe: Recipe, info: DatasetInfo, dataset: str) -> ModelSpec:
    """The model of a recipe for the films of a data set. Raises `InputError` if its input is larger than the films."""
    size = recipe.size if recipe.size is not None else info.size
    if size > info.size:
        raise InputError(
            f"{dataset}: holds films of {info.size} pixels, the model wants {size}; prepare it again with --size"
            f" {size}, or train with --size {info.size}"
        )
    preprocessing = replace(info.preprocessing, size=size, decoded_size=info.size, normalise=recipe.normalise)
    return ModelSpec(
        name=recipe.model, parameters=recipe.parameters, classes=recipe.classes, preprocessing=preprocessing
    )


def to_toml(recipe: Recipe) -> str:
    """A recipe as a file that `read_recipe` reads.

    Defaults are written, too, so that the file keeps its meaning when defaults change. Of the head only l2 and steps
    are written: a recipe has no hidden layer, and the seed is that of the training.
    """
    values = {name: value for name, value in asdict(recipe).items() if value is not None}
    values["intended_use"] = {name: limit for name, limit in recipe.intended_use.to_json().items() if name != "stated"}
    if not values["intended_use"]:
        del values["intended_use"]
    if recipe.folds is not None:
        values["folds"] = str(recipe.folds)
    training = {name: value for name, value in values.pop("training").items() if value is not None}
    head = {name: values["head"][name] for name in HEAD} if recipe.fits_head else {}
    tables = {"parameters": values.pop("parameters"), "training": training, "head": head, "grid": values.pop("grid")}
    del values["head"]
    lines = toml_lines(values)
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *toml_lines(table)]
    return "\n".join(lines) + "\n"


def _parsed(table: dict[str, Any]) -> Recipe:
    _refuse_unknown(table, {known.name for known in fields(Recipe)}, "a recipe")
    if "model" not in table:
        raise InputError('a recipe names its model, as in model = "cnn"')
    training, head = table.pop("training", {}), table.pop("head", {})
    _refuse_unknown(training, {known.name for known in fields(TrainSettings)}, "[training]")
    _refuse_unknown(head, set(HEAD), "[head]")
    if head and table.get("learn") != "head" and not table.get("head_first"):
        raise InputError('[head] is for recipes with learn = "head" or head_first = true')
    table["classes"] = tuple(table.get("classes", Recipe.classes))
    if "intended_use" in table:
        table["intended_use"] = state(table["intended_use"])
    if "folds" in table:
        table["folds"] = parse_folds(str(table["folds"]))
    return Recipe(**table, training=TrainSettings(**training), head=HeadSettings(**head))


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table.keys() - known:
        hint = did_you_mean(key, known) or f"known are {', '.join(sorted(known))}"
        raise InputError(f"{where} has no {key!r}; {hint}")
