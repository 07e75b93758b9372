"""The synthetic patients: what stays the same between two films of one patient.

Body coordinates: u to the right of the picture (the patient's left), v downwards, in units of half the film's height,
origin between the lung hila. Numbers are drawn here and pixels in `render.py`, so several films of one patient share
anatomy and findings, and differ in pose, exposure and noise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Subtype = Literal["", "bacteria", "virus"]

# Where lobar pneumonia sits: centres of right upper, right middle, right lower, left upper and left lower lobe.
_LOBES = ((-0.32, -0.34), (-0.30, 0.06), (-0.40, 0.22), (0.34, -0.28), (0.46, 0.16))


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One consolidation: air spaces filled within a soft, patchy ellipse."""

    u: float
    v: float
    radius_u: float
    radius_v: float
    strength: float
    """Share of the air filled at its core, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The anatomy of one synthetic patient; lengths in body coordinates, densities relative to soft tissue."""

    subtype: Subtype
    """Empty for healthy lungs."""
    lesions: tuple[Lesion, ...]
    texture_seed: int
    """Seeds every texture that belongs to the patient: lung tissue, shading, the ragged edge of a lesion."""
    vessels: npt.NDArray[np.float32]
    """Segments [N, 5] of the lungs' vessels: u0, v0, u1, v1, width."""
    chest_width: float
    chest_top: float
    chest_square: float
    trunk_width: float
    shoulder: float
    """Height of the shoulders."""
    arm: float
    """Distance of the upper arms from the trunk."""
    diaphragm: tuple[float, float]
    """Height of the right and the left dome."""
    heart: tuple[float, float, float, float, float]
    """u, v, radii and tilt of the heart's ellipse."""
    mediastinum: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    rib_density: float
    clavicle: tuple[float, float, float]
    """Height at the sternum, rise to the shoulder and bow."""
    spine_bend: float
    spine_density: float
    air: tuple[float, float]
    """Transparency of the right and the left lung."""
    thickness: float
    """Soft tissue around the lungs."""
    breast: tuple[float, float, float]
    """Height, radius and density of a soft-tissue shadow over both lower lungs."""
    scapula: tuple[float, float]
    """Density over the right and the left upper lung."""
    stomach: tuple[float, float, float]
    """u, v and radius of the stomach bubble."""


def draw_patient(rng: np.random.Generator, subtype: Subtype) -> Patient:
    """Draw one patient, healthy (`""`) or with the lesions of `subtype`. The rest does not depend on `subtype`."""
    anatomy, disease = rng.spawn(2)
    chest_width = anatomy.uniform(0.60, 0.72)
    dome = anatomy.uniform(0.36, 0.58)
    size = anatomy.uniform(0.85, 1.2)
    air = anatomy.uniform(0.72, 1.0)
    return Patient(
        subtype=subtype,
        lesions=_draw_lesions(disease, subtype, dome),
        texture_seed=int(anatomy.integers(2**63)),
        vessels=np.concatenate([_grow_vessels(anatomy, side) for side in (-1.0, 1.0)]),
        chest_width=chest_width,
        chest_top=anatomy.uniform(-0.82, -0.70),
        chest_square=anatomy.uniform(0.2, 0.7),
        trunk_width=chest_width + anatomy.uniform(0.08, 0.2),
        shoulder=anatomy.uniform(-0.86, -0.7),
        arm=anatomy.uniform(0.1, 0.35),
        diaphragm=(dome - anatomy.uniform(0.0, 0.08), dome),
        heart=(
            anatomy.uniform(0.06, 0.13),
            dome - anatomy.uniform(0.14, 0.22),
            0.34 * size,
            0.23 * size,
            anatomy.uniform(0.5, 1.0),
        ),
        mediastinum=anatomy.uniform(0.10, 0.16),
        rib_spacing=anatomy.uniform(0.145, 0.175),
        rib_phase=anatomy.uniform(0, 1),
        rib_slope=anatomy.uniform(0.25, 0.5),
        rib_density=anatomy.uniform(0.10, 0.16),
        clavicle=(anatomy.uniform(-0.62, -0.52), anatomy.uniform(0.05, 0.22), anatomy.uniform(0.02, 0.05)),
        spine_bend=anatomy.normal(0, 0.02),
        spine_density=anatomy.uniform(0.09, 0.15),
        air=(air * anatomy.uniform(0.86, 1.0), air * anatomy.uniform(0.86, 1.0)),
        thickness=anatomy.uniform(0.85, 1.15),
        breast=(dome - anatomy.uniform(0.05, 0.3), anatomy.uniform(0.2, 0.4), anatomy.uniform(0.0, 0.08)),
        scapula=(anatomy.uniform(0.0, 0.08), anatomy.uniform(0.0, 0.08)),
        stomach=(anatomy.uniform(0.25, 0.45), dome + anatomy.uniform(0.12, 0.22), anatomy.uniform(0.0, 0.14)),
    )


def _draw_lesions(rng: np.random.Generator, subtype: Subtype, dome: float) -> tuple[Lesion, ...]:
    """Bacteria: one lobe. Virus: several smaller, fainter patches in both lungs."""
    if subtype == "":
        return ()
    if subtype == "bacteria":
        u, v = _LOBES[rng.integers(len(_LOBES))]
        return (
            Lesion(
                u=u + rng.normal(0, 0.04),
                v=v + rng.normal(0, 0.05) + 0.5 * (dome - 0.47),
                radius_u=rng.uniform(0.14, 0.22),
                radius_v=rng.uniform(0.14, 0.24),
                strength=rng.uniform(0.75, 0.97),
            ),
        )
    patches = int(rng.integers(5, 10))
    sides = np.where(np.arange(patches) % 2, -1.0, 1.0)
    return tuple(
        Lesion(
            u=float(side * rng.uniform(0.22, 0.5)),
            v=rng.uniform(-0.4, dome - 0.12),
            radius_u=rng.uniform(0.06, 0.12),
            radius_v=rng.uniform(0.06, 0.12),
            strength=rng.uniform(0.65, 0.92),
        )
        for side in sides
    )


def _grow_vessels(rng: np.random.Generator, side: float) -> npt.NDArray[np.float32]:
    """Vessel tree of one lung: in every generation each vessel forks in two, thinner and shorter; segments [N, 5]."""
    trunks = 10
    angle = rng.uniform(-1.35, 1.35, trunks) + np.linspace(-0.2, 0.2, trunks)
    u, v = np.full(trunks, side * 0.13), rng.uniform(-0.14, 0.12, trunks)
    width = rng.uniform(0.016, 0.026, trunks)
    length = rng.uniform(0.12, 0.20, trunks)
    grown = []
    for _generation in range(4):
        end_u, end_v = u + side * np.cos(angle) * length, v + np.sin(angle) * length
        grown.append(np.stack([u, v, end_u, end_v, width], axis=1))
        fork = rng.uniform(0.12, 0.5, len(angle))
        angle = np.concatenate([angle - fork, angle + rng.uniform(0.12, 0.5, len(angle))])
        u, v = np.tile(end_u, 2), np.tile(end_v, 2)
        width = np.tile(width, 2) * rng.uniform(0.6, 0.8, len(angle))
        length = np.tile(length, 2) * rng.uniform(0.6, 0.95, len(angle))
    return np.concatenate(grown).astype(np.float32)
