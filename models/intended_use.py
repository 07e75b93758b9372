"""Whose films a model was made for, and whether a film's header says that it is another's.

A model has learned from films of some ages, views and kinds of device; of others its probabilities are guesses, however
sure it is of them. What its training films show of this, and what a person states, is kept in the bundle. A header that
tells of something else is believed, and its film is not scored; a header that says nothing passes, since plain JPEG has
no header and a missing element is no evidence. What the header does not tell may still show in the pixels:
`models/networks/familiarity.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from models.errors import InputError
from models.messages import did_you_mean

OLDEST: Final = 90
"""Years; higher ages are written as this one wherever rayscan keeps them."""
_PROJECTIONS: Final = {"AP", "PA"}


@dataclass(frozen=True, kw_only=True)
class ScanFacts:
    """What is known of a scan before its pixels; None where nothing is."""

    age_years: int | None = None
    view: str | None = None
    modality: str | None = None
    presentation_intent: str | None = None
    manufacturer: str | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntendedUse:
    """The limits of a model; an empty one excludes nothing."""

    age_years: tuple[int, int] | None = None
    """Youngest and oldest in whole years, up to OLDEST, which stands for all above."""
    views: tuple[str, ...] = ()
    """Projections: AP, PA."""
    modalities: tuple[str, ...] = ()
    """DICOM's codes: CR, DX."""
    presentation_intents: tuple[str, ...] = ()
    manufacturers: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    """For people to read: no header tells a country."""
    stated: tuple[str, ...] = ()
    """The limits of these that a person stated; the others are what the training films show."""

    def excludes(self, scan: ScanFacts) -> str | None:
        """Name of the first limit that a scan lies beyond; None for one within all of them.

        Manufacturers and sites exclude only where a person stated them: a model is made to be used elsewhere, too.
        """
        if self.age_years is not None and scan.age_years is not None:
            youngest, oldest = self.age_years
            if not youngest <= min(scan.age_years, OLDEST) <= oldest:
                return "age_years"
        projections = set((scan.view or "").upper().split()) & _PROJECTIONS
        if self.views and projections and not projections & set(self.views):
            return "views"
        for limit, value in (
            ("modalities", scan.modality),
            ("presentation_intents", scan.presentation_intent),
            ("manufacturers", scan.manufacturer),
            ("sites", scan.site),
        ):
            allowed = getattr(self, limit)
            optional = limit in {"manufacturers", "sites"} and limit not in self.stated
            if allowed and value and not optional and value.upper() not in {name.upper() for name in allowed}:
                return limit
        return None

    def in_words(self) -> dict[str, str]:
        """Each limit there is and where it comes from, for people."""
        words: dict[str, str] = {}
        for limit in _STATED:
            value = getattr(self, limit)
            if not value:
                continue
            source = "stated" if limit in self.stated else "seen in the training films"
            told = _ages(value) if limit == "age_years" else ", ".join(value)
            words[limit.removesuffix("_years").replace("_", " ")] = f"{told} ({source})"
        return words

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the limits there are not."""
        return {name: list(value) for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "IntendedUse":
        """The inverse of `to_json`. Raises `InputError` for what is no intended use."""
        known = [field.name for field in fields(cls)]
        for name, limit in value.items():
            if name not in known:
                raise InputError(f"an intended use has no {name!r}; {did_you_mean(name, known) or ', '.join(_STATED)}")
            if not isinstance(limit, list | tuple) or not limit:
                raise InputError(f"intended use: {name} = {limit!r} is not a list; write [1, 5] or a list of names")
        age = value.get("age_years")
        if age is not None and not (
            len(age) == 2 and all(type(years) is int for years in age) and 0 <= age[0] <= age[1] <= OLDEST
        ):
            raise InputError(f"intended use: age_years = {list(age)} is not youngest and oldest, 0 to {OLDEST} years")
        for name in (*_LISTS, "stated"):
            if not all(isinstance(one, str) and one for one in value.get(name, ())):
                raise InputError(f"intended use: {name} must be a list of names")
        if wrong := set(value.get("views", ())) - _PROJECTIONS:
            raise InputError(f"intended use: {', '.join(sorted(wrong))} is no projection; choose AP, PA or both")
        return cls(**{name: tuple(limit) for name, limit in value.items()})


_LISTS: Final = ("views", "modalities", "presentation_intents", "manufacturers", "sites", "countries")
_STATED: Final = ("age_years", *_LISTS)


def _ages(years: tuple[int, int]) -> str:
    youngest, oldest = years
    return f"{youngest} years and more" if oldest >= OLDEST else f"{youngest} to {oldest} years"


def state(limits: Mapping[str, Any]) -> IntendedUse:
    """The intended use that a person states. Raises `InputError` for what is none."""
    if not isinstance(limits, Mapping):
        raise InputError(f"an intended use is a table such as {{ age_years = [1, 5] }}, not {limits!r}")
    if "stated" in limits:
        raise InputError("an intended use has no 'stated'; name the limits themselves")
    return IntendedUse.from_json({**limits, **({"stated": list(limits)} if limits else {})})


def combined(stated: IntendedUse, seen: IntendedUse) -> IntendedUse:
    """What a person states goes before what the training films show."""
    return IntendedUse.from_json({**seen.to_json(), **stated.to_json()})


ANY: Final = IntendedUse()
"""Without any limit."""
