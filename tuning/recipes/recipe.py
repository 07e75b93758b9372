"""A named way to make a model: architecture, start, training and calibration in one TOML file.

    about = "…"                  one line
    model = "cnn"                a name of models/networks/zoo.py
    size = 224                   side of the network's input; the data set's where it is smaller
    normalise = "film"           as in models/spec.py
    calibrate = "temperature"    as in models/statistics/calibration.py
    learn = "all"                of a network that starts from weights: "all", "head" (a frozen backbone, whose features
                                 are computed once), or so many of its deepest groups of layers
    head_first = false           before all learns, a classifier is fitted to frozen features and put in
    select = "auc"               what is kept of a grid: the best validation AUC; or "robust": of the five best, that
                                 which does best on films made otherwise (tuning/recipes/selection.py)
    weights = "w.safetensors"    what the network starts from: a URI, a file (a relative path is one of this file's
                                 folder), `imagenet` for those timm publishes, or "needed" where a start from random
                                 weights would make another recipe of it
    classes = ["NORMAL", "BACTERIA", "VIRUS"]   where kinds of pneumonia are told apart; else NORMAL and PNEUMONIA
    [parameters]                 of the architecture
    [training]                   of tuning/training/settings.py
    [head]                       l2 and steps of tuning/training/head_settings.py, for learn = "head" and for head_first
    [grid]                       parameters with a list of values each, those of [head] too: every combination is
                                 trained, one is kept

Those that come with rayscan stand in tuning/recipes/: what earlier projects on these films did, and today's best. A
search leaves those of its best trials at STUDY/recipes/.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, Literal

from models.errors import InputError
from models.messages import did_you_mean
from models.spec import CALIBRATION_METHODS, CalibrationMethod, ModelSpec, Normalise, Scalar
from pipelines.ingest.dataset_info import DatasetInfo
from tuning.recipes.choices import SELECTS, Select
from tuning.toml_files import NEEDED, absolute, folder_of, names, read_toml, toml_lines
from tuning.training.head_settings import HeadSettings
from tuning.training.settings import TrainSettings

HEAD: Final = ("l2", "steps")
"""What a recipe says of a head. A hidden layer is out: the network's own classifier has no room for it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is made."""

    model: str
    """`majority`, `mlp`, `cnn`, or the name of a timm backbone."""
    about: str = ""
    size: int | None = None
    """Side of the network's input in pixels; None takes the data set's."""
    normalise: Normalise = "film"
    calibrate: CalibrationMethod = "temperature"
    learn: Literal["all", "head"] | int = "all"
    """What learns of a network that starts from weights: all, the classifier alone, or so many of the last groups."""
    head_first: bool = False
    """Before all learns, the classifier is fitted to frozen features, as `learn = "head"` does: one that starts at
    random first pulls the pretrained layers out of shape, and loses most on films unlike the training films (Kumar et
    al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution")."""
    weights: str | None = None
    """URI or path of pretrained weights, `imagenet` for those timm publishes, or `needed`: the caller must say."""
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")
    """What is told apart; kinds of disease are named as the catalogue's subtypes: NORMAL, BACTERIA, VIRUS."""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    training: TrainSettings = field(default_factory=TrainSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    """Of the classifier on frozen features; its seed is that of the training."""
    grid: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    select: Select = "auc"
    """Which combination of the grid is kept: the best validation AUC, or of the best five that on changed films."""

    def __post_init__(self) -> None:
        if self.calibrate not in CALIBRATION_METHODS:
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
        """Whether a classifier is fitted to frozen features, before all learns or alone."""
        return self.learn == "head" or self.head_first

    def combinations(self) -> list[dict[str, Scalar]]:
        """Every combination of the grid; an empty one where there is none."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def at(self, combination: Mapping[str, Scalar]) -> "Recipe":
        """The recipe of one combination of the grid."""
        of_head = {name: value for name, value in combination.items() if self.fits_head and name in HEAD}
        parameters = {name: value for name, value in combination.items() if name not in of_head}
        head: HeadSettings = replace(self.head, **of_head)  # type: ignore[arg-type] # it checks them
        return replace(self, head=head, parameters={**self.parameters, **parameters}, grid={}, select="auc")


def recipe_names() -> list[str]:
    """The recipes that come with rayscan."""
    return names("recipe")


def read_recipe(name: str) -> Recipe:
    """The recipe of this name, or in the TOML file at this path. Raises `InputError` for what is none."""
    table = read_toml("recipe", name)
    if isinstance(table.get("weights"), str):
        table["weights"] = absolute(table["weights"], folder_of(name))
    try:
        return _parsed(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def require_weights(recipe: Recipe) -> None:
    """Raise `InputError` where a recipe starts from weights that nobody named."""
    if recipe.weights == NEEDED:
        raise InputError(
            "this recipe starts from pretrained weights: name their file or URI with --weights, or `imagenet` for those"
            " timm publishes, where there is a network"
        )


def spec_of(recipe: Recipe, info: DatasetInfo, dataset: str) -> ModelSpec:
    """The model of a recipe on the films of a data set. Raises `InputError` for a size above theirs."""
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

    What is at its default is written, too, so that the file says the same when defaults change. Of the head l2 and
    steps are: a hidden layer no recipe has, and its seed is that of the training.
    """
    value = {name: of for name, of in asdict(recipe).items() if of is not None}
    training = {name: of for name, of in value.pop("training").items() if of is not None}
    head = {name: value["head"][name] for name in HEAD} if recipe.fits_head else {}
    tables = {"parameters": value.pop("parameters"), "training": training, "head": head, "grid": value.pop("grid")}
    del value["head"]
    lines = toml_lines(value)
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
    return Recipe(**table, training=TrainSettings(**training), head=HeadSettings(**head))


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table.keys() - known:
        hint = did_you_mean(key, known) or f"known are {', '.join(sorted(known))}"
        raise InputError(f"{where} has no {key!r}; {hint}")
