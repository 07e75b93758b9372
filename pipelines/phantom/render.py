"""From a synthetic patient to a film: a projection of soft tissue, air, bone and disease.

Bone and soft tissue add to the attenuation of the body along the beam, air reduces it; `exposure.py` turns attenuation
into grey levels, bright = dense. Disease replaces air, so it is visible only inside the lungs and hides vessels but
never bones. All of it is arithmetic on whole arrays.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pipelines.phantom.anatomy import Patient, Subtype, draw_patient
from pipelines.phantom.exposure import HOME_SCANNER, Scanner, expose
from pipelines.phantom.fields import Field, cloud, enlarge, rise

CANVAS = 640
"""Longest side at which anatomy is drawn. Larger films are enlarged from it; only the grain is drawn at full size."""

BAND = 16384
"""Pixels projected at a time, so that temporary arrays stay in the cache: five times faster."""


@dataclass(frozen=True, kw_only=True)
class _Textures:
    """Random fields [h, w] of one film."""

    markings: Field
    """Vessels and lung tissue, which replace air in a healthy lung."""
    patchy: Field
    """Makes a lesion ragged."""
    shading: Field
    """Broad unevenness of tissue and beam, about 1."""

    def band(self, rows: slice) -> "_Textures":
        return _Textures(markings=self.markings[rows], patchy=self.patchy[rows], shading=self.shading[rows])


@dataclass(frozen=True, kw_only=True)
class _Pose:
    """The patient's pose for one film: body coordinates of every pixel [h, w], and the inverse mapping."""

    u: Field
    v: Field
    turn: float
    zoom: float
    shift: tuple[float, float]
    aspect: float

    def to_pixels(self, u: Field, v: Field) -> tuple[Field, Field]:
        """Column and row of points in body coordinates."""
        height = self.u.shape[0]
        x = (np.cos(self.turn) * u - np.sin(self.turn) * v) * self.zoom + self.shift[0]
        y = (np.sin(self.turn) * u + np.cos(self.turn) * v) * self.zoom + self.shift[1]
        return (x + self.aspect) * height / 2, (y + 1) * height / 2


def film(
    rng: np.random.Generator, *, opacity: bool, size: int = 256, aspect: float = 1.0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One film of a new patient, and the mask of its opacity.

    `size` is the width in pixels and `aspect` width over height. Returns grey levels uint8 [H, W] and a mask [H, W],
    empty without opacity; two thirds of the opacities are bacterial, one third viral.
    """
    subtype: Subtype = ("bacteria" if rng.random() < 2 / 3 else "virus") if opacity else ""
    return render(draw_patient(rng, subtype), rng, size=size, aspect=aspect)


def render(
    patient: Patient,
    rng: np.random.Generator,
    *,
    size: int = 256,
    aspect: float = 1.0,
    scanner: Scanner = HOME_SCANNER,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One more film of `patient`: grey levels uint8 [H, W] and the mask [H, W] of its opacities.

    `size` is the width in pixels, `aspect` width over height. Pose, exposure and noise come from `rng`,
    exposure and noise within the ranges of `scanner`.
    """
    width, height = size, max(1, round(size / aspect))
    shrink = min(1.0, CANVAS / max(width, height))
    pose = _strike_pose(rng, max(1, round(height * shrink)), max(1, round(width * shrink)))
    textures = _draw_textures(patient, pose, rng)
    attenuation, filled = np.empty_like(pose.u), np.empty_like(pose.u)
    rows = max(1, BAND // pose.u.shape[1])
    for top in range(0, len(pose.u), rows):
        band = slice(top, top + rows)
        attenuation[band], filled[band] = _project(patient, pose.u[band], pose.v[band], textures.band(band))
    mask = enlarge(filled, height, width) > 0.15
    return expose(enlarge(attenuation, height, width), rng, scanner), mask


def _strike_pose(rng: np.random.Generator, height: int, width: int) -> _Pose:
    aspect = width / height
    turn = rng.normal(0, 0.035)
    zoom = rng.uniform(1.0, 1.25) * aspect**0.35
    shift = (rng.normal(0, 0.04), rng.normal(0.06, 0.04))
    x = np.linspace(-aspect, aspect, width, dtype=np.float32)[None, :] - np.float32(shift[0])
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(shift[1])
    cos, sin = np.float32(np.cos(turn) / zoom), np.float32(np.sin(turn) / zoom)
    return _Pose(u=cos * x + sin * y, v=cos * y - sin * x, turn=turn, zoom=zoom, shift=shift, aspect=aspect)


def _draw_textures(patient: Patient, pose: _Pose, rng: np.random.Generator) -> _Textures:
    own = np.random.default_rng(patient.texture_seed)  # the same for every film of the patient
    shape = pose.u.shape
    shading = 1 + 0.05 * cloud(own, 5, shape) + 0.04 * cloud(rng, 3, shape)
    markings = 0.42 * _vessels(patient, pose) + 0.06 * cloud(own, 50, shape)
    patchy = cloud(own, 9, shape) + 0.6 * cloud(own, 22, shape) if patient.lesions else np.zeros(shape, np.float32)
    return _Textures(markings=markings, patchy=patchy, shading=shading)


def _project(patient: Patient, u: Field, v: Field, textures: _Textures) -> tuple[Field, Field]:
    """Attenuation [h, w], 0 in open air and about 1 at the spine, and the share [h, w] of the lungs that is filled."""
    across = np.abs(u)
    left = u > 0  # of the patient: the right of the picture

    body, soft = _soft_tissue(patient, v, across)
    into_cage = _cage(patient, v) - across
    cage = rise(into_cage, 0.04) * rise(v - patient.chest_top, 0.06)
    dome = np.where(left, np.float32(patient.diaphragm[1]), np.float32(patient.diaphragm[0]))
    above_dome = dome + 0.9 * (across - 0.30) ** 2 - v
    heart = _heart(patient, u, v)
    inner = patient.mediastinum + 0.035 * (v + 0.2) ** 2
    lung = cage * rise(across - inner, 0.06) * rise(above_dome, 0.03) * (1 - 0.93 * heart)

    filled = lung * _opacities(patient, u, v, textures.patchy)
    depth = 0.55 + 0.45 * rise(np.minimum(into_cage, across - inner) - 0.10, 0.30)
    share = np.where(left, np.float32(patient.air[1]), np.float32(patient.air[0]))
    air = lung * depth * share * (1 - textures.markings) * (1 - filled)

    attenuation = soft + 0.06 * heart * body
    attenuation += 0.07 * body * rise(-above_dome, 0.03) * cage  # liver and spleen stand behind the domes
    attenuation -= 0.40 * air
    attenuation += _ribs(patient, v, across, into_cage) * body
    attenuation += (_clavicles(patient, v, across) + _spine(patient, u, v) + _shadows(patient, u, v, left)) * body
    stomach_u, stomach_v, radius = patient.stomach
    if radius > 0.04:
        from_stomach = np.sqrt(((u - stomach_u) / 1.4) ** 2 + (v - stomach_v) ** 2)
        attenuation -= 0.16 * rise(radius - from_stomach, 0.05) * body
    return attenuation * textures.shading, filled


def _soft_tissue(patient: Patient, v: Field, across: Field) -> tuple[Field, Field]:
    """Outline (0 to 1) and attenuation of trunk, neck, shoulders and upper arms."""
    # From the armpits upwards the trunk widens into the shoulders.
    trunk = patient.trunk_width + 0.22 * rise(-0.28 - v, 0.5) - 0.04 * v
    slope = patient.shoulder + 0.30 * across**2
    torso = np.minimum(trunk - across, v - slope)
    neck = 0.20 + 0.5 * np.maximum(v + 0.75, 0) - across
    inside = np.maximum(torso, neck)
    body = rise(inside, 0.03)
    # The arm hangs from the shoulder, a cylinder with the humerus in its middle.
    off = across - (patient.trunk_width + 0.14 + patient.arm * (v + 0.55))
    arm = rise(0.13 - np.abs(off), 0.04) * rise(v + 0.62, 0.15)
    thick = np.sqrt(np.clip(1 - (across / (trunk + 0.02)) ** 2, 0, 1))
    soft = body * (0.17 + 0.42 * thick) * patient.thickness
    soft = np.maximum(soft, arm * 0.30 * patient.thickness)
    soft += 0.16 * rise(0.04 - np.abs(off), 0.03) * arm
    return body, soft


def _cage(patient: Patient, v: Field) -> Field:
    """Half the width of the rib cage at height `v`: an ellipse made squarer, narrowing little at the bottom."""
    bottom = np.float32(0.42)
    t = np.clip((bottom - v) / (bottom - patient.chest_top), 0, 1)
    t2 = t * t
    half = np.sqrt(np.clip(1 - t2 * (1 - patient.chest_square + patient.chest_square * t2), 0, 1))
    width: Field = patient.chest_width * half - 0.10 * np.maximum(v - bottom, 0)
    return width


def _heart(patient: Patient, u: Field, v: Field) -> Field:
    """The heart's shadow (0 to 1), with the aortic knob above it and the hila beside it."""
    centre_u, centre_v, radius_u, radius_v, tilt = patient.heart
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    a = (cos * (u - centre_u) + sin * (v - centre_v)) / radius_u
    b = (cos * (v - centre_v) - sin * (u - centre_u)) / radius_v
    heart = rise(1 - np.sqrt(a * a + b * b), 0.14)
    knob = rise(0.10 - np.sqrt((u - 0.09) ** 2 + (v + 0.34) ** 2), 0.05)
    vessels = rise(patient.mediastinum + 0.06 - np.abs(u - 0.02), 0.08) * rise(v + 0.30, 0.2)
    hila = 0.5 * np.exp(-(((np.abs(u) - 0.17) / 0.06) ** 2) - ((v + 0.05) / 0.12) ** 2)
    shadow: Field = np.maximum(np.maximum(heart, hila), np.maximum(0.9 * knob, 0.8 * vessels))
    return shadow


def _ribs(patient: Patient, v: Field, across: Field, into_cage: Field) -> Field:
    """Ribs behind (falling outwards, dense) and in front (rising outwards, faint), denser where they curve away."""
    edge = np.exp(-np.abs(into_cage - 0.015) * np.float32(26))
    out = across / patient.chest_width
    out2 = out * out
    behind = v - patient.rib_slope * 0.5 * out2 + 0.10 * out - 0.32 * out2 * out2 * out2
    front = v + patient.rib_slope * 0.9 * out - 0.25
    reach = rise(into_cage + 0.005, 0.03) * rise(v - patient.chest_top, 0.05) * rise(0.82 - v, 0.4)
    dense = _band(behind / patient.rib_spacing + patient.rib_phase, 0.40) * rise(across - 0.06, 0.05)
    faint = _band(front / (patient.rib_spacing * 1.15) + patient.rib_phase, 0.42) * rise(across - 0.26, 0.16)
    bone: Field = patient.rib_density * reach * (dense * (1 + 0.6 * edge) + 0.45 * faint + 0.9 * edge)
    return bone


def _band(phase: Field, width: float) -> Field:
    """A bone `width` wide in each period of `phase`: nearly flat, with the brighter rims of its cortex."""
    from_middle = np.abs(phase - np.round(phase))
    t = from_middle / (width / 2)
    return rise(1 - t, 0.4) * (0.55 + 0.6 * np.minimum(t, 1) ** 2)


def _clavicles(patient: Patient, v: Field, across: Field) -> Field:
    start, lift, bow = patient.clavicle
    along = (across - 0.07) / 0.55
    height = start - lift * along + bow * np.sin(6 * np.clip(along, 0, 1))
    t = np.abs(v - height) / 0.030
    bone = rise(1 - t, 0.5) * (0.6 + 0.4 * np.minimum(t, 1))
    density: Field = 0.14 * bone * rise(across - 0.06, 0.03) * rise(1.05 - along, 0.1)
    return density


def _spine(patient: Patient, u: Field, v: Field) -> Field:
    """Vertebrae with darker discs between them, and the air of the trachea in front."""
    off = np.abs(u - patient.spine_bend * np.sin(3 * v))
    phase = v / (patient.rib_spacing * 0.95) + patient.rib_phase
    disc = np.abs(phase - np.round(phase))
    column = rise(0.085 - off, 0.025) * (0.72 + 0.28 * rise(0.40 - disc, 0.12))
    pedicles = np.exp(-(((off - 0.05) / 0.016) ** 2) - (disc / 0.16) ** 2)
    trachea = rise(0.035 - off, 0.03) * rise(-0.22 - v, 0.08)
    mediastinum = 0.05 * rise(patient.mediastinum + 0.02 - off, 0.1)
    density: Field = mediastinum + patient.spine_density * (column + 0.35 * pedicles) - 0.10 * trachea
    return density


def _shadows(patient: Patient, u: Field, v: Field, left: npt.NDArray[np.bool_]) -> Field:
    """Shadows over healthy and diseased lungs alike: breasts below, shoulder blades at the upper outer edge."""
    height, radius, density = patient.breast
    across = np.abs(u)
    breast = rise(1 - np.sqrt(((across - 0.38) / radius) ** 2 + ((v - height) / radius) ** 2), 0.35)
    blade = rise(0.10 - np.abs(across - 0.62 + 0.2 * v), 0.05) * rise(0.30 - np.abs(v + 0.25), 0.15)
    return density * breast + np.where(left, patient.scapula[1], patient.scapula[0]) * blade


def _opacities(patient: Patient, u: Field, v: Field, patchy: Field) -> Field:
    """Share of the air filled by disease [h, w], 0 to 1; patchy inside, soft at the edge."""
    clear = np.ones_like(u)
    for lesion in patient.lesions:
        away = ((u - lesion.u) / lesion.radius_u) ** 2 + ((v - lesion.v) / lesion.radius_v) ** 2
        clear *= 1 - np.float32(lesion.strength) * rise(0.85 - away + 0.55 * patchy, 1.3)
    return 1 - clear


def _vessels(patient: Patient, pose: _Pose) -> Field:
    """The vessel trees as drawn lines [h, w], 0 to 1."""
    height, width = pose.u.shape
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    x0, y0 = pose.to_pixels(patient.vessels[:, 0], patient.vessels[:, 1])
    x1, y1 = pose.to_pixels(patient.vessels[:, 2], patient.vessels[:, 3])
    thick = patient.vessels[:, 4] * np.float32(height / 2)
    # A line cannot be thinner than a pixel: a finer vessel is drawn fainter instead.
    grey = np.clip(thick, 0.15, 1) * 200
    for ends, wide, level in zip(
        np.stack([x0, y0, x1, y1], axis=1).tolist(), np.maximum(1, np.round(thick)).tolist(), grey.tolist(), strict=True
    ):
        draw.line(ends, fill=int(level), width=int(wide))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(height / 400)), np.float32) / 255
