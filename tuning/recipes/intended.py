"""The intended use that a model's training films show: the ages, views and devices of which there are enough."""

import re
from collections import Counter
from typing import Final

from models.films import Films
from models.intended_use import OLDEST, IntendedUse

LEAST_KNOWN: Final = 0.5
"""Share of the films whose header must tell, for what it tells to be a limit."""
LEAST_SHARE: Final = 0.01
"""Share of these that a value must have: of fewer films a network learns little."""
_OF_GROUP: Final = {
    "view": "views",
    "modality": "modalities",
    "presentation_intent": "presentation_intents",
    "manufacturer": "manufacturers",
    "site": "sites",
}


def seen_in(films: Films) -> IntendedUse:
    """What the groups of these films show (`pipelines.ingest.dataset.load_films` makes them)."""
    limits: dict[str, list[str] | list[int]] = {}
    for group, limit in _OF_GROUP.items():
        names = _frequent(films, group)
        if group == "view":
            words = {word for name in names for word in name.split()}
            names = sorted(words & {"AP", "PA"})
        if names:
            limits[limit] = names
    if bands := _frequent(films, "age_years"):
        ends = [_years(band) for band in bands]
        limits["age_years"] = [min(low for low, _ in ends), max(high for _, high in ends)]
    return IntendedUse.from_json(limits)


def _frequent(films: Films, group: str) -> list[str]:
    """The values of a group that enough films have, sorted; none where too few films tell."""
    names = films.groups.get(group)
    if names is None:
        return []
    counts = Counter(name for name in names.tolist() if name)
    known = sum(counts.values())
    if known < LEAST_KNOWN * len(films):
        return []
    return sorted(name for name, films_of in counts.items() if films_of >= LEAST_SHARE * known)


def _years(band: str) -> tuple[int, int]:
    """The ends of a band of ages: `1 to 4 years`, `65 years and more`."""
    ends = [int(number) for number in re.findall(r"\d+", band)]
    return ends[0], ends[1] if len(ends) > 1 else OLDEST
