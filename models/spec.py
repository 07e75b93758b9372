"""What a model is, in one frozen value: architecture, its parameters, its classes and its preprocessing.

A `ModelSpec` and a set of weights determine every probability; both stand in the bundle.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

from models.errors import InputError

DISCLAIMER = "rayscan assists triage; it is not a diagnosis."
"""Stands in every model card, report and README."""

Decode = Literal["reduced", "dct", "exact"]
Fit = Literal["squash", "letterbox", "crop"]
Normalise = Literal["film", "unit", "symmetric"]

CalibrationMethod = Literal["temperature", "platt", "isotonic"]
CALIBRATION_METHODS: Final = get_args(CalibrationMethod)
"""How logits become probabilities: `models/statistics/calibration.py`."""
PriorMethod = Literal["saerens", "bbse"]
"""How the prevalence among unlabelled films is estimated: `models/statistics/prior_shift.py`."""

Scalar = int | float | str | bool

MOST_MEMBERS: Final = 50


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From the bytes of a scan to the network's input. Training and scoring use the same value."""

    size: int = 224
    """Side of the network's square input in pixels."""
    decoded_size: int | None = None
    """Side of the square a film is decoded and stretched to (the Kermany films are stretched, too) before it is shrunk
    to `size` in the graph; None: `size` itself. A model trained at 64 on films prepared at 224 is scored that way."""
    decode: Decode = "reduced"
    """`exact`: every pixel is decoded; `dct`: libjpeg decodes at the smallest of the scales 1/8, 1/4, 1/2 and 1 that
    covers the decoded size, in half the time; `reduced`: so, and JPEG 2000 and HTJ2K at the smallest of their
    resolutions that has twice the decoded size. A model is scored with the path it was trained on; against every pixel,
    `dct` moves probabilities by 0.0013 on average and 0.04 at most (`tests/benchmarks/LOG.md`)."""
    normalise: Normalise = "film"
    """`film`: each film to mean 0, deviation 1; `unit`: grey/255; `symmetric`: grey/127.5 - 1."""
    fit: Fit = "squash"
    """How a film becomes a square: `squash`: stretched; `letterbox`: with black bars; `crop`: its middle. See
    `pipelines/decoding/fit.py`."""
    harmonise: float | None = None
    """Width over height to which every film is cut before the fit; then what tells how it was made is taken out: its
    border, its contrast, its finest detail. None: films are left as they are."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise InputError(f"preprocessing size {self.size} is out of range; choose 16 to 2048 pixels")
        if not self.size <= self.film_size <= 2048:
            raise InputError(f"decoded size {self.film_size} is out of range; choose {self.size} to 2048 pixels")
        if self.decode not in get_args(Decode):
            raise InputError(f"unknown decode path {self.decode!r}; choose from {', '.join(get_args(Decode))}")
        if self.normalise not in get_args(Normalise):
            raise InputError(f"unknown normalisation {self.normalise!r}; choose from {', '.join(get_args(Normalise))}")
        if self.fit not in get_args(Fit):
            raise InputError(f"unknown fit {self.fit!r}; choose from {', '.join(get_args(Fit))}")
        if self.harmonise is not None and not 0.25 <= self.harmonise <= 4:
            raise InputError(f"films cannot be cut to {self.harmonise:g} times as wide as high; choose 0.25 to 4")

    @property
    def as_seen(self) -> str:
        """What becomes of a film beside its size and decoding, in words; empty for films that are only stretched."""
        fit = {"squash": "", "letterbox": "letterboxed", "crop": "its middle square"}[self.fit]
        cut = "" if self.harmonise is None else f"harmonised at {self.harmonise:g}:1"
        return ", ".join(part for part in (cut, fit) if part)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values.

        A field that the first bundles did not have is left out at its default, so that hashes stay what they were.
        """
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}

    @property
    def film_size(self) -> int:
        """Side of the films the model is given, as decoding leaves them."""
        return self.decoded_size or self.size


_LATER: Final[Mapping[str, Any]] = {"fit": "squash", "harmonise": None}
"""Fields of a preprocessing that the first bundles do not have, with what they mean by that."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture and preprocessing of one model."""

    name: str
    """`majority`, `mlp`, `cnn`, or the name of a timm backbone."""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    """What `models/networks/zoo.py` builds it with; the names are those of the family's own settings."""
    classes: tuple[str, ...] = ("NORMAL", "PNEUMONIA")
    """In the order of the network's outputs; the first is the absence of disease."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    members: int = 1
    """Networks of this architecture, of whose logits the model's are the mean."""

    def __post_init__(self) -> None:
        if not 1 <= self.members <= MOST_MEMBERS:
            raise InputError(f"a model of {self.members} networks is out of range; choose 1 to {MOST_MEMBERS}")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `members` is left out of models of one network, whose hashes stay what they were."""
        return {
            "name": self.name,
            "parameters": dict(self.parameters),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            **({} if self.members == 1 else {"members": self.members}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelSpec":
        """The inverse of `to_json`. Raises `InputError` on fields this version does not know."""
        try:
            return cls(
                name=value["name"],
                parameters=dict(value["parameters"]),
                classes=tuple(value["classes"]),
                preprocessing=Preprocessing(**value["preprocessing"]),
                members=int(value.get("members", 1)),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"this is not a model specification of this version of rayscan: {error}") from error
