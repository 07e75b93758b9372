"""The films the gate's templates were fitted to, and those they were not."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.ingest.patients import kermany_patient
from pipelines.phantom import film

Film = npt.NDArray[np.uint8]


def kermany(real_data: Path) -> tuple[list[Film], list[Film]]:
    """Kermany's films, 224 x 224: those of about half the patients, to fit to, and all the others'."""
    learned: list[Film] = []
    held_out: list[Film] = []
    for path in sorted((real_data / "kermany_224").rglob("*.jpeg")):
        patient = kermany_patient(path.name) or path.name
        side = learned if hashlib.blake2b(patient.encode()).digest()[0] % 2 else held_out
        side.append(np.asarray(Image.open(path).convert("L")))
    return learned, held_out


def phantoms(seeds: range) -> list[Film]:
    """Phantom films 128 pixels wide, two of three ill, every other one as oblong as originals are."""
    shown = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        aspect = rng.uniform(0.8, 1.6) if seed % 2 else 1.0
        shown.append(film(rng, opacity=seed % 3 > 0, size=128, aspect=aspect)[0])
    return shown
