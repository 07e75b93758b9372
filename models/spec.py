"""What a model is, in one frozen value: architecture, its parameters, its classes and its preprocessing.

A `ModelSpec` and a set of weights determine every probability; both stand in the bundle.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from models.errors import InputError

DISCLAIMER = "rayscan assists triage; it is not a diagnosis."
"""Stands in every model card, report and README."""

Decode = Literal["exact", "dct"]
Normalise = Literal["film", "unit", "symmetric"]

Scalar = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From the bytes of a scan to the network's input. Training and scoring use the same value."""

    size: int = 224
    """Side of the square input in pixels; the film is stretched to it, as the Kermany films are."""
    decode: Decode = "dct"
    """`exact`: the whole JPEG is decoded; `dct`: libjpeg decodes at the smallest n/8 scale at least twice `size`."""
    normalise: Normalise = "film"
    """`film`: each film to mean 0, deviation 1; `unit`: grey/255; `symmetric`: grey/127.5 - 1."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise InputError(f"preprocessing size {self.size} is out of range; choose 16 to 2048 pixels")
        if self.decode not in get_args(Decode):
            raise InputError(f"unknown decode path {self.decode!r}; choose from {', '.join(get_args(Decode))}")
        if self.normalise not in get_args(Normalise):
            raise InputError(f"unknown normalisation {self.normalise!r}; choose from {', '.join(get_args(Normalise))}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture and preprocessing of one model."""

    name: str
    """`majority`, `mlp`, `cnn`, or the name of a timm backbone."""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    """What `models/zoo.py` builds it with; the names are those of the family's own settings."""
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")
    """In the order of the network's outputs; the first is the absence of disease."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "parameters": dict(self.parameters), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelSpec":
        """The inverse of `to_json`. Raises `InputError` on fields this version does not know."""
        try:
            return cls(
                name=value["name"],
                parameters=dict(value["parameters"]),
                classes=tuple(value["classes"]),
                preprocessing=Preprocessing(**value["preprocessing"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"this is not a model specification of this version of rayscan: {error}") from error
