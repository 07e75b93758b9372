"""The search space: first the family, then the parameters of this family.

Define-by-run: `SearchSpace` is called with an Optuna trial and asks it for one value after the other, so a cnn trial
has no number of hidden layers and an mlp trial no depth. A flat dictionary of distributions was refused: the sampler
would model parameters that have no effect. Parameters of one table carry its name (`cnn_depth`), because Optuna keeps
one distribution per name.

It is data, read from a file by `tuning/spaces/space_file.py`, and not a closure: Ray's OptunaSearch pickles it, and a
study records it, so that a search with another space cannot resume it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from models.errors import InputError
from models.networks.cnn import CNNSettings
from models.networks.zoo import BackboneSettings, MajoritySettings, MLPSettings
from models.spec import ModelSpec, Preprocessing, Scalar
from tuning.spaces.domain import Domain, Suggest
from tuning.toml_files import NO_WEIGHTS
from tuning.training.head_settings import HeadSettings
from tuning.training.settings import TrainSettings

BASELINE: Final = "baseline"
"""User attribute of an Optuna trial: this trial is the named baseline."""
GIVEN: Final = "given"
"""User attribute of an Optuna trial: its whole configuration, which need not lie in the space; nothing is sampled."""
KIND: Final = "kind"
"""In a trial's configuration, beside its parameters: its `TrialKind`, where it is not the search's own."""

BASELINES: Final = ("majority", "mlp")
"""Always the first trials of a study, with the default settings: what a search has to beat."""

OWN_FAMILIES: Final = ("majority", "mlp", "cnn")
"""Families whose tables carry their own name; those of every timm backbone share `backbone`."""
EVERY: Final = ""
"""Table of parameters that every family has; they carry no prefix."""
BACKBONE: Final = "backbone"
PRETRAINED: Final = "pretrained"
"""Table of parameters of a network that starts from pretrained weights; they override those of its family."""
PROBES: Final = "probe"
"""Table of the heads that are tried on frozen features."""

FILM: Final[Mapping[str, Scalar]] = {"resolution": Preprocessing.size, "normalise": Preprocessing.normalise}
HEAD: Final[Mapping[str, Scalar]] = {"l2": HeadSettings.l2, "hidden": HeadSettings.hidden, "steps": HeadSettings.steps}
START: Final[Mapping[str, Scalar]] = {"head_first": False, "l2": HeadSettings.l2}
_OF_THE_SEARCH: Final = {"epochs", "seed", "device", "threads", "objective"}
TRAINING: Final[Mapping[str, Scalar]] = {
    field.name: getattr(TrainSettings(), field.name)
    for field in fields(TrainSettings)
    if field.name not in _OF_THE_SEARCH
}


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What one trial trains."""

    spec: ModelSpec
    training: TrainSettings
    weights: str | None = None
    """File or URI of pretrained weights it starts from, or `imagenet`; None: random weights."""
    head: HeadSettings | None = None
    """How the classifier is fitted to frozen features, before the rest learns, too; None: it starts at random."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Where the search looks. Calling it with an Optuna trial makes the trial's suggestions."""

    families: tuple[str, ...]
    """`mlp`, `cnn`, and names of timm backbones."""
    tables: Mapping[str, Mapping[str, Domain]]
    """The values of each parameter, by the table it stands in."""

    def __call__(self, trial: Suggest) -> dict[str, Scalar]:
        """Suggest one trial's parameters; returns the configuration of a trial that is not sampled, else nothing."""
        if given := trial.user_attrs.get(GIVEN):
            return dict(given)
        if name := trial.user_attrs.get(BASELINE):
            return {KIND: "baseline", "family": name, **self._baseline_resolution()}
        family = trial.suggest_categorical("family", self.families)
        values = dict(defaults(family))
        if weights := self.branch(family).get("weights"):
            values["weights"] = weights[1].suggest(trial, weights[0])
        branch = self.branch(family, pretrained=values.get("weights", NO_WEIGHTS) != NO_WEIGHTS)
        # those with a condition come after what it may depend on; the sort keeps the order of the others
        for name, (full, domain) in sorted(branch.items(), key=lambda item: bool(item[1][1].when)):
            if name != "weights" and domain.acts(values):
                values[name] = domain.suggest(trial, full)
        return {}

    def branch(self, family: str, *, pretrained: bool = False) -> dict[str, tuple[str, Domain]]:
        """The parameters of a family by their plain names: the name they carry in a trial, and their values."""
        branch: dict[str, tuple[str, Domain]] = {}
        for table in tables_of(family, pretrained=pretrained):
            for name, domain in self.tables.get(table, {}).items():
                branch[name] = (full_name(table, name), domain)
        return branch

    def weights_of(self, family: str) -> list[str]:
        """The pretrained weights a family may start from."""
        start = self.branch(family).get("weights")
        return [str(choice) for choice in start[1].choices if choice != NO_WEIGHTS] if start else []

    def point(self, family: str, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Values by their plain names as parameters of a trial of this family, the others left to the sampler.

        Raises `InputError` where one lies outside this space.
        """
        if family not in self.families:
            raise InputError(f"{family} is not searched here")
        branch = self.branch(family, pretrained=values.get("weights", NO_WEIGHTS) != NO_WEIGHTS)
        parameters: dict[str, Scalar] = {"family": family}
        for name, value in values.items():
            if name in branch and value in branch[name][1]:
                parameters[branch[name][0]] = value
            elif name in branch or value != defaults(family)[name]:
                raise InputError(f"{name}={value} lies outside this space")
        return parameters

    def translated(self, parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The parameters of a trial of another space as those of this one.

        What the other space did not search had its default: here, too, where this space allows it, else the sampler
        chooses. Raises `InputError` where a value lies outside this space.
        """
        family = str(parameters["family"])
        given = plain_values(parameters)
        translated = self.point(family, given)
        values = {**defaults(family), **given}
        pretrained = values.get("weights", NO_WEIGHTS) != NO_WEIGHTS
        for name, (full, domain) in self.branch(family, pretrained=pretrained).items():
            if values[name] in domain and domain.acts(values):
                translated[full] = values[name]
        return translated

    def usual(self) -> list[dict[str, Scalar]]:
        """One trial of each family, with its defaults where the space allows them; the sampler chooses the rest.

        A family that may start from pretrained weights does so: from the first that are named, on the largest films,
        because such weights come from large ones.
        """
        trials = []
        for family in self.families:
            start: dict[str, Scalar] = {}
            if weights := self.weights_of(family):
                start = {self.branch(family)["weights"][0]: weights[0]}
                if side := self.branch(family, pretrained=True).get("resolution"):
                    start[side[0]] = max(int(value) for value in side[1].edges())
            trials.append(self.translated({"family": family, **start}))
        return trials

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, in the form of a space's file."""
        written = {
            table: {name: domain.to_json() for name, domain in domains.items()}
            for table, domains in self.tables.items()
        }
        return {"family": list(self.families), **written.pop(EVERY, {}), **written}

    def _baseline_resolution(self) -> dict[str, Scalar]:
        sides = self.tables.get(EVERY, {}).get("resolution")
        return {"resolution": min(int(side) for side in sides.edges())} if sides else {}


def tables_of(family: str, *, pretrained: bool) -> tuple[str, ...]:
    """The tables that apply to a family, the most general first; a later one overrides an earlier."""
    own = (family,) if family in OWN_FAMILIES else (BACKBONE, family)
    return (EVERY, *own, *((PRETRAINED,) if pretrained else ()))


def full_name(table: str, name: str) -> str:
    """What a parameter is called in a trial."""
    return f"{table}_{name}" if table else name


def architecture(family: str) -> dict[str, Scalar]:
    """The parameters of a family's architecture with their defaults."""
    settings = {"majority": MajoritySettings, "mlp": MLPSettings, "cnn": CNNSettings}.get(family, BackboneSettings)
    return dict(vars(settings()))


def known(table: str) -> dict[str, Scalar]:
    """The parameters a table may have, with their defaults."""
    if table == PROBES:
        return dict(HEAD)
    if table == PRETRAINED:
        return {**FILM, **TRAINING, **START}
    start = {} if table in {EVERY, *OWN_FAMILIES} else {"weights": NO_WEIGHTS}
    return {**FILM, **TRAINING, **({} if table == EVERY else architecture(table)), **start}


def defaults(family: str) -> dict[str, Scalar]:
    """Every parameter of a family by its plain name, with its value where the space does not mention it."""
    return {**known(family), **({} if family in OWN_FAMILIES else START)}


def plain_values(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A trial's parameters by their plain names, without its family.

    Raises `InputError` on one that this version does not know.
    """
    family = str(parameters["family"])
    names = {full_name(table, name): name for table in tables_of(family, pretrained=True) for name in defaults(family)}
    for name in parameters:
        if name not in names and name != "family":
            raise InputError(f"{family} has no parameter {name!r} in this version of rayscan")
    return {names[name]: value for name, value in parameters.items() if name in names}


def to_plan(
    parameters: Mapping[str, Scalar],
    *,
    preprocessing: Preprocessing,
    epochs: int,
    seed: int,
    threads: int | None = None,
    device: str | None = None,
    objective: str = "auc",
) -> TrialPlan:
    """What one trial trains, from its parameters; the rest has the defaults of the architecture and `TrainSettings`.

    `preprocessing` is that of the dataset; the trial's resolution replaces its size.
    """
    family = str(parameters["family"])
    values: dict[str, Any] = plain_values(parameters)
    spec = ModelSpec(
        name=family,
        parameters={name: values[name] for name in values if name in architecture(family)},
        preprocessing=replace(
            preprocessing,
            size=values.get("resolution", preprocessing.size),
            decoded_size=preprocessing.film_size,
            normalise=values.get("normalise", preprocessing.normalise),
        ),
    )
    training = TrainSettings(
        epochs=epochs,
        seed=seed,
        threads=threads,
        device=device,
        objective=objective,
        **{name: values[name] for name in values if name in TRAINING},
    )
    if values.get("weights", NO_WEIGHTS) == NO_WEIGHTS:
        return TrialPlan(spec=spec, training=training)
    head = HeadSettings(l2=values.get("l2", HeadSettings.l2), seed=seed) if values.get("head_first") else None
    return TrialPlan(spec=spec, training=training, weights=values["weights"], head=head)


class _Leaf:
    """A trial that follows a given path down a discrete space, and from its end always takes the first choice.

    The choices it did not take are added to `others`, as paths to follow later.
    """

    user_attrs: Mapping[str, Any] = {}

    def __init__(self, path: dict[str, Any], others: list[dict[str, Any]]) -> None:
        self.path = path
        self.others = others

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name not in self.path:
            self.others.extend({**self.path, name: choice} for choice in reversed(choices[1:]))
            self.path[name] = choices[0]
        return self.path[name]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        chosen: int = self.suggest_categorical(name, range(low, high + 1))
        return chosen

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        raise InputError(
            f"a grid needs a finite space, but {name} is any number from {low} to {high}; give a list of values, and"
            ' base = "empty" or "grid" where the rest comes from the default space'
        )


def leaves(space: SearchSpace) -> list[dict[str, Any]]:
    """Every combination of a discrete space, in order; conditional parameters only where their condition holds.

    The search enqueues them one by one. Optuna's own exhaustive sampler was refused: with several trials running
    it may repeat one, and it does not say how many there are. Raises `InputError` for a space that is not discrete.
    """
    combinations: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = [{}]
    while pending:
        leaf = _Leaf(pending.pop(), pending)
        space(leaf)  # type: ignore[arg-type] # its user_attrs are read only
        combinations.append(leaf.path)
    return combinations
