"""Archives to measure on: a few hundred films under as many keys as wanted, hard-linked, so copies cost no disk."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.films import Films
from models.spec import Preprocessing
from pipelines.decoding.decode import decode
from pipelines.phantom import write_archive
from pipelines.storage import open_store

PHANTOM_PATIENTS = 120
PHANTOM_WIDTHS = (1000, 1600)
"""Of generated films in pixels; with their heights 1.4 megapixels in the mean, as the real originals have."""


@dataclass(frozen=True, kw_only=True)
class Originals:
    """Films of original size."""

    paths: tuple[Path, ...]
    """The folder that holds a film names its label."""
    what: str
    """Where they come from, and how large they are."""

    def prepared(self, size: int) -> Films:
        """All films, decoded as `prepare` would for a model of this size; a film is its own patient."""
        decoded = [decode(path.read_bytes(), Preprocessing(size=size)).pixels for path in self.paths]
        names = np.array([path.name for path in self.paths])
        labels = np.array([path.parent.name == "PNEUMONIA" for path in self.paths], dtype=np.int64)
        return Films(
            pixels=np.stack(decoded), labels=labels, patients=names, subtypes=np.full(len(names), ""), scan_ids=names
        )


def originals(folder: Path) -> Originals:
    """The Kermany originals of RAYSCAN_REAL_DATA copied into a folder; generated films where there are none."""
    real = os.environ.get("RAYSCAN_REAL_DATA")
    if real:
        shutil.copytree(Path(real) / "kermany_original", folder)
    else:
        write_archive(open_store(str(folder)), patients=PHANTOM_PATIENTS, seed=0, size=PHANTOM_WIDTHS)
    # Both classes from the first films on, whatever part of them is taken.
    paths = sorted(folder.rglob("*.jpeg"), key=lambda path: path.name[::-1])
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    kind = "Kermany originals" if real else "GENERATED films"
    return Originals(paths=tuple(paths), what=f"{len(paths)} {kind}, mean {kilobytes:.0f} kB")


def link(paths: tuple[Path, ...], folder: Path, count: int, *, first: int = 0, per_folder: int = 1000) -> None:
    """Make `count` keys of these films in a folder of the same disk, each film in turn, numbered from `first` on."""
    for number in range(first, first + count):
        home = folder / f"{number // per_folder:04d}"
        if number in (first, number // per_folder * per_folder):
            home.mkdir(parents=True)
        os.link(paths[number % len(paths)], home / f"{number:07d}.jpeg")
