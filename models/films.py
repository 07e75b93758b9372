"""Prepared films in memory: what training and evaluation read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Films:
    """N prepared films. Arrays may be read-only views of shared memory."""

    pixels: npt.NDArray[np.uint8]
    """Grey levels [N, size, size]."""
    labels: npt.NDArray[np.int64]
    """Class index [N]: 0 NORMAL, 1 PNEUMONIA."""
    patients: npt.NDArray[np.str_]
    """Patient key [N]; films of one patient share it."""
    subtypes: npt.NDArray[np.str_]
    """`bacteria`, `virus` or the empty string [N]."""
    scan_ids: npt.NDArray[np.str_]
    """Scan identity [N]."""

    places: npt.NDArray[np.str_] | None = None
    """The place of each film in the archive's own order, as text that sorts so [N]; None where it is not known."""
    groups: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    """Kind of subgroup (`site`, `view`, `width`, …) -> the name of each film's [N], empty where it is not known."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the square films in pixels."""
        return int(self.pixels.shape[-1])

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Films":
        """Copies of some of them: where a mask [N] is true, or at indices, in their order."""
        return Films(
            pixels=self.pixels[chosen],
            labels=self.labels[chosen],
            patients=self.patients[chosen],
            subtypes=self.subtypes[chosen],
            scan_ids=self.scan_ids[chosen],
            places=None if self.places is None else self.places[chosen],
            groups={kind: names[chosen] for kind, names in self.groups.items()},
        )


def join_films(parts: Sequence[Films]) -> Films:
    """The films of all parts, in the order of their scan ids; of the subgroups, those that all parts have."""
    pixels, labels, patients, subtypes, scan_ids = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("pixels", "labels", "patients", "subtypes", "scan_ids")
    )
    kinds = set.intersection(*(set(part.groups) for part in parts))
    groups = {kind: np.concatenate([part.groups[kind] for part in parts]) for kind in sorted(kinds)}
    places = [part.places for part in parts if part.places is not None]
    films = Films(
        pixels=pixels,
        labels=labels,
        patients=patients,
        subtypes=subtypes,
        scan_ids=scan_ids,
        places=np.concatenate(places) if len(places) == len(parts) else None,
        groups=groups,
    )
    return films.take(np.argsort(scan_ids, kind="stable"))


def choose_films(labels: npt.NDArray[np.integer[Any]], most: int) -> npt.NDArray[np.int64]:
    """Rising indices of about `most` films of class indices [N], or of all N if there are fewer.

    Each class keeps its share, and has one film at least. The seed is fixed: the same labels give the same films.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.default_rng(0)
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(own)[: max(1, round(most * len(own) / len(labels)))])
    return np.sort(np.concatenate(chosen))
