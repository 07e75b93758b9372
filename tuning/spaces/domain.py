"""The values one parameter may take, and how Optuna is asked for one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from models.errors import InputError
from models.spec import Scalar

RANGE: Final = ("low", "high", "log")
FORMS: Final = "give one value, a list of values, or { low = …, high = …, log = true|false }"


class Suggest(Protocol):
    """What a space needs of an Optuna trial; `optuna.Trial` and `optuna.trial.FixedTrial` have it."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Attributes given to the trial when it was enqueued."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number from `low` to `high`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from `low` to `high`."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Either `choices`, a single one for a fixed value, or all numbers from `low` to `high`."""

    choices: tuple[Scalar, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Whether the range is searched by its logarithm."""
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """Values other parameters must have; otherwise this one is not suggested and keeps its default."""

    @classmethod
    def parse(cls, name: str, value: Any, kind: type) -> "Domain":
        """From a value of a file: a single value, a list, or a table. `kind` is the type of the parameter's values.

        Raises `InputError` for anything else.
        """
        if not isinstance(value, dict):
            values = value if isinstance(value, list) else [value]
            if not values:
                raise InputError(f"{name} has no value to choose; {FORMS}")
            return cls(choices=tuple(dict.fromkeys(_typed(name, choice, kind) for choice in values)))
        table = dict(value)
        when = table.pop("when", {})
        if not isinstance(when, dict):
            raise InputError(f'{name}: when = {when!r} is not a condition; write when = {{ schedule = "cosine" }}')
        conditions = {key: tuple(wanted if isinstance(wanted, list) else [wanted]) for key, wanted in when.items()}
        if set(table) == {"choices"}:
            return cls(choices=cls.parse(name, table["choices"], kind).choices, when=conditions)
        if not {"low", "high"} <= set(table) <= set(RANGE) or kind not in {int, float}:
            raise InputError(f"{name} = {value!r} is not a set of values; {FORMS}")
        low, high = (_typed(name, table[end], kind) for end in ("low", "high"))
        log = table.get("log", False)
        if low >= high or not isinstance(log, bool) or (log and low <= 0):
            raise InputError(f"{name}: {value!r} is not a range; low must be below high, and above 0 with log = true")
        return cls(low=low, high=high, log=log, when=conditions)

    def to_json(self) -> Any:
        """The inverse of `parse`, as plain JSON values."""
        when = {"when": {name: list(values) for name, values in self.when.items()}} if self.when else {}
        if not self.choices:
            return {"low": self.low, "high": self.high, "log": self.log, **when}
        return {"choices": list(self.choices), **when} if when else list(self.choices)

    def suggest(self, trial: Suggest, name: str) -> Scalar:
        """Ask a trial for a value."""
        if self.choices:
            chosen: Scalar = trial.suggest_categorical(name, self.choices)
            return chosen
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def acts(self, values: Mapping[str, Scalar]) -> bool:
        """Whether the other parameters, by their plain names, have the values this one depends on."""
        return all(values[other] in wanted for other, wanted in self.when.items())

    def edges(self) -> tuple[Scalar, ...]:
        """Its choices, or both ends of its range."""
        if self.choices:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return (self.low, self.high)

    def __contains__(self, value: Scalar) -> bool:
        if self.choices:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        return not isinstance(value, str) and self.low <= value <= self.high


def _typed(name: str, value: Any, kind: type) -> Any:
    """The value, checked to be of this type; a whole number also serves as a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{name}: {value!r} must be of type {kind.__name__}; {FORMS}")
    return value
