"""The search space: first the family, then the parameters that this family alone has.

Define-by-run: `SearchSpace` is called with an Optuna trial and asks it for one value after the other, so a cnn trial
has no number of hidden layers and an mlp trial no depth. A flat dictionary of distributions was refused: its sampler
would spend its model on parameters that do not act. Parameters of one family carry its name (`cnn_depth`), because
Optuna keeps one distribution per name.

It is a frozen dataclass, not a closure: Ray's OptunaSearch pickles it, and a study writes it down, to refuse to go on
with another space under the same trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, get_args

from models.cnn import Pooling, smallest_film
from models.errors import InputError
from models.spec import ModelSpec, Preprocessing, Scalar
from models.zoo import known_models
from tuning.loop import ClassWeighting, TrainSettings

BASELINE = "baseline"
"""User attribute of an Optuna trial, and parameter of a study's row: this trial is the named baseline."""

BASELINES = ("majority", "mlp")
"""Always the first trials of a study, as the zoo and the training loop give them: what a search has to beat."""


OWN_FAMILIES = ("majority", "mlp", "cnn")
"""Families whose parameters carry their own name; those of every timm backbone begin with `backbone_`."""


class Suggest(Protocol):
    """What the space needs of an Optuna trial; `optuna.Trial`, `optuna.trial.FixedTrial` and `_Leaf` have it."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Attributes given to the trial when it was enqueued."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from `low` to `high`."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Where the search looks. Calling it with an Optuna trial makes the trial's suggestions."""

    families: tuple[str, ...] = ("mlp", "cnn")
    """`mlp`, `cnn`, and names of timm backbones."""
    resolutions: tuple[int, ...] = (64, 96, 128)
    """Sides of the training input in pixels."""
    grid: bool = False
    """A small discrete version of the space, to be visited whole."""

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        """Suggest one trial's parameters; what is returned beside the suggestions are a baseline's constants."""
        if name := trial.user_attrs.get(BASELINE):
            return {BASELINE: True, "family": name, "resolution": self.resolutions[0]}
        family = trial.suggest_categorical("family", self.families)
        if self.grid:
            _grid_training(trial, self.resolutions)
        else:
            _training(trial, self.resolutions)
        if family == "mlp":
            _mlp(trial, grid=self.grid)
        elif family == "cnn":
            _cnn(trial, grid=self.grid, smallest=min(self.resolutions))
        elif not self.grid:
            trial.suggest_float("backbone_drop_rate", 0.0, 0.5)
        return {}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "families": list(self.families), "resolutions": list(self.resolutions)}


def space_for(size: int, *, families: Sequence[str], resolutions: Sequence[int], grid: bool) -> SearchSpace:
    """The space for a dataset of films `size` pixels wide.

    Resolutions above the dataset's size are left out (enlarged films carry no more detail); where none is left, it is
    the dataset's own size. Raises `InputError` on a family the zoo does not know.
    """
    known = known_models()
    for family in families:
        if family == "majority" or family not in known:
            raise InputError(f"cannot search the family {family!r}; choose mlp, cnn or the name of a timm backbone")
    if not families:
        raise InputError("there is no family to search; choose mlp, cnn or the name of a timm backbone")
    fitting = tuple(sorted({side for side in resolutions if side <= size})) or (size,)
    return SearchSpace(families=tuple(dict.fromkeys(families)), resolutions=fitting, grid=grid)


def _training(trial: Suggest, resolutions: Sequence[int]) -> None:
    trial.suggest_categorical("resolution", resolutions)
    trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("batch_size", (16, 32, 64))
    trial.suggest_float("label_smoothing", 0.0, 0.1)
    trial.suggest_categorical("class_weighting", get_args(ClassWeighting))
    trial.suggest_float("augment", 0.0, 1.5)


def _grid_training(trial: Suggest, resolutions: Sequence[int]) -> None:
    trial.suggest_categorical("resolution", resolutions[-1:])
    trial.suggest_categorical("learning_rate", (1e-3, 3e-3))
    trial.suggest_categorical("augment", (0.0, 1.0))


def _mlp(trial: Suggest, *, grid: bool) -> None:
    trial.suggest_categorical("mlp_width", (64, 256) if grid else (32, 64, 128, 256))
    if not grid:
        trial.suggest_categorical("mlp_layers", (1, 2, 3))
        trial.suggest_float("mlp_dropout", 0.0, 0.5)


def _cnn(trial: Suggest, *, grid: bool, smallest: int) -> None:
    # Optuna keeps one set of choices per name, so the depth suits every resolution of the space.
    depths = [depth for depth in ((3, 4) if grid else (2, 3, 4)) if smallest_film(depth) <= smallest]
    trial.suggest_categorical("cnn_depth", tuple(depths))
    trial.suggest_categorical("cnn_width", (16, 32) if grid else (8, 16, 24, 32))
    if not grid:
        trial.suggest_categorical("cnn_residual", (False, True))
        trial.suggest_categorical("cnn_pooling", get_args(Pooling))
        trial.suggest_float("cnn_dropout", 0.0, 0.5)


@dataclass
class _Leaf:
    """A trial that follows a given path down a discrete space, and at the path's end takes the first branch.

    What it did not take it leaves in `others`, as paths to follow later.
    """

    path: dict[str, Any]
    others: list[dict[str, Any]]
    user_attrs: dict[str, Any]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name not in self.path:
            self.others.extend({**self.path, name: choice} for choice in reversed(choices[1:]))
            self.path[name] = choices[0]
        return self.path[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        raise InputError(f"a grid needs a finite space, but {name} is a number from {low} to {high}")


def leaves(space: SearchSpace) -> list[dict[str, Any]]:
    """Every combination of a discrete space, in order; conditional parameters only where they act.

    They are handed to the study one by one. Optuna's own exhaustive sampler was refused: with several trials running
    it may repeat one, and it does not say how many there are.
    """
    found: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = [{}]
    while pending:
        leaf = _Leaf(path=pending.pop(), others=pending, user_attrs={})
        space(leaf)
        found.append(leaf.path)
    return found


def to_spec_and_settings(
    parameters: Mapping[str, Scalar],
    *,
    preprocessing: Preprocessing,
    epochs: int,
    seed: int,
    threads: int | None = None,
    device: str | None = None,
) -> tuple[ModelSpec, TrainSettings]:
    """What one trial trains, from its parameters; what they leave open is as the zoo and `TrainSettings` have it.

    `preprocessing` is that of the dataset; the trial's resolution takes the place of its size.
    """
    family = str(parameters["family"])
    prefix = f"{family}_" if family in OWN_FAMILIES else "backbone_"
    own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
    size = int(parameters.get("resolution", preprocessing.size))
    spec = ModelSpec(
        name=family,
        parameters=own,
        preprocessing=replace(preprocessing, size=size, decoded_size=preprocessing.film_size),
    )
    names = {field.name for field in fields(TrainSettings)}
    chosen: dict[str, Any] = {name: value for name, value in parameters.items() if name in names}
    return spec, TrainSettings(epochs=epochs, seed=seed, threads=threads, device=device, **chosen)
