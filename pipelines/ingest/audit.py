"""What in an archive would spoil a study: imbalance, duplicates, patients in two splits, shortcuts, broken files.

Reads the catalogue, and the pixels of a bounded sample of its films (`looked.py`). Exact duplicates, broken files and
sizes of all files need a catalogue made with `--inspect`; the audit says so if it was not.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa

from models.spec import DISCLAIMER
from pipelines.contracts import EXCLUDED
from pipelines.errors import InputError
from pipelines.ingest.catalog import read_catalog
from pipelines.ingest.looked import Film, Looked, look
from pipelines.ingest.near_copies import grouped, near_pairs
from pipelines.ingest.shapes import common_aspect
from pipelines.ingest.shortcuts import border_parts, film_shortcuts, probe_films, shortcuts
from pipelines.ingest.verdicts import verdicts
from pipelines.storage import open_store

FILMS: Final = 6_000
"""Films whose pixels are looked at, at most: a minute or two of one core for JPEG files."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The findings; `verdicts` puts them into sentences."""

    catalog: str
    scans: int
    splits: Mapping[str, Mapping[str, int]]
    """Split -> label -> films."""
    patients: int
    shared_patients: int
    """Patients with films in more than one of train, val and test."""
    patients_of_both_labels: int
    formats: Mapping[str, Mapping[str, int]]
    """Label -> format -> films."""
    copies: int | None
    """Files whose bytes are identical to another file's; None without --inspect."""
    copies_across: int | None
    """Groups of identical files in more than one of train, val and test, or with more than one label."""
    problems: Mapping[str, int] | None
    """Files that cannot be read, by reason; None without --inspect."""
    shortcuts: Mapping[str, float]
    """Fact -> AUC, 0.5 to 1, with which this fact about the file alone separates pneumonia from normal."""
    films_read: int
    """Films whose pixels were looked at; what follows is of them."""
    films_unread: Mapping[str, int]
    """Films of that sample that could not be read, by reason."""
    near_copies: int | None
    """Films that show what another film of the sample shows, their bytes alike or not; None if none was looked at."""
    near_copies_across: int | None
    """Groups of those in more than one of train, val and test."""
    label_conflicts: int | None
    """Groups of those with more than one label."""
    probes: Mapping[str, Mapping[str, float | None]]
    """Of PROBES -> `before` and `after` harmonising -> AUC; None where it does not apply, or films are too few."""
    border_parts: Mapping[str, float | None]
    """Of PARTS -> AUC of this part of the border alone, before harmonising."""
    aspect: float | None
    """Width over height that harmonised films were cut to."""
    verdicts: tuple[str, ...]
    notice: str = DISCLAIMER
    looked: Looked | None = None
    """The films themselves, for the page; not in the JSON."""
    shapes: Mapping[str, Sequence[tuple[int, int]]] | None = None
    """Label -> (width, height) of films, for the page; not in the JSON."""
    groups: Sequence[Sequence[int]] = ()
    """Copies among the films of `looked`, by index, those across splits or labels first; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"looked", "shapes", "groups"}}


def audit(catalog: str, films: int = FILMS) -> Audit:
    """Audit the catalogue at a URI, and look at no more than `films` of its films. Raises `InputError`."""
    if films < 0:
        raise InputError(f"{films} films cannot be looked at; give 0 or more")
    table = read_catalog(catalog)
    rows = table.select(["split", "label", "patient_key", "content_hash", "problem", "format"]).to_pylist()
    inspected = any(row["content_hash"] for row in rows)
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    formats: dict[str, Counter[str]] = defaultdict(Counter)
    splits_of_patient: dict[str, set[str]] = defaultdict(set)
    labels_of_patient: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["label"]:
            splits[row["split"] or "none"][row["label"]] += 1
        formats[row["label"] or "none"][row["format"] or "unknown"] += 1
        if row["patient_key"]:
            splits_of_patient[row["patient_key"]].add(row["split"])
            labels_of_patient[row["patient_key"]].add(row["label"])
    copies, across = _copies(rows)
    looked = look(table, films, _aspect(table, catalog)) if films else None
    groups = _near_groups(looked.films) if looked else []
    facts: dict[str, Any] = {
        "scans": len(rows),
        "splits": {name: dict(sorted(labels.items())) for name, labels in sorted(splits.items())},
        "patients": len(splits_of_patient),
        "shared_patients": sum(len(own - {EXCLUDED, None}) > 1 for own in splits_of_patient.values()),
        "patients_of_both_labels": sum(len(own - {None}) > 1 for own in labels_of_patient.values()),
        "formats": {name: dict(found.most_common()) for name, found in sorted(formats.items())},
        "copies": copies if inspected else None,
        "copies_across": across if inspected else None,
        "problems": dict(Counter(r["problem"] for r in rows if r["problem"])) if inspected else None,
        "shortcuts": shortcuts(table) | (film_shortcuts(looked.films) if looked else {}),
        "films_read": len(looked.films) if looked else 0,
        "films_unread": dict(looked.problems) if looked else {},
        "near_copies": sum(len(group) - 1 for group in groups) if looked else None,
        "near_copies_across": sum(bool(group.sides) for group in groups) if looked else None,
        "label_conflicts": sum(bool(group.labels) for group in groups) if looked else None,
        "probes": probe_films(looked.films) if looked else {},
        "border_parts": border_parts(looked.films) if looked else {},
        "aspect": looked.aspect if looked else None,
    }
    groups.sort(key=lambda group: (not group.labels, not group.sides))
    return Audit(
        catalog=open_store(catalog).root,
        **facts,
        verdicts=verdicts(facts),
        looked=looked,
        shapes=_shapes(table),
        groups=groups,
    )


def _copies(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Duplicates, and groups of them in two splits or with two labels; files that cannot be read (empty ones) aside."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["content_hash"] and not row["problem"]:
            groups[row["content_hash"]].append(row)
    across = sum(
        len({row["split"] for row in group} - {EXCLUDED, None}) > 1 or len({row["label"] for row in group} - {None}) > 1
        for group in groups.values()
    )
    return sum(len(group) - 1 for group in groups.values()), across


class _Group(list[int]):
    """Indices of films that are copies of each other."""

    def __init__(self, films: Sequence[Film], group: list[int]) -> None:
        super().__init__(group)
        rows = [films[at].row for at in group]
        self.sides = len({row["split"] for row in rows} - {EXCLUDED, None}) > 1
        self.labels = len({row["label"] for row in rows} - {None}) > 1


def _near_groups(films: Sequence[Film]) -> list[_Group]:
    if not films:
        return []
    pairs = near_pairs(np.stack([film.hash for film in films]), np.stack([film.thumb for film in films]))
    return [_Group(films, group) for group in grouped(pairs)]


def _aspect(table: pa.Table, catalog: str) -> float:
    """What `prepare --harmonise` would cut to; square where no sizes are known."""
    try:
        return common_aspect(table, catalog)
    except InputError:
        return 1.0


def _shapes(table: pa.Table) -> dict[str, list[tuple[int, int]]]:
    shapes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for label, width, height in zip(*(table[name].to_pylist() for name in ("label", "width", "height")), strict=True):
        if width and height:
            shapes[label or "none"].append((width, height))
    return dict(sorted(shapes.items()))
