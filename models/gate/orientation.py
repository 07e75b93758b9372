"""The orientation of a film, from its pixels alone: upright, turned, a negative, a part of a chest, or no chest.

A film is looked at as a thumbnail: 16 x 16 means in rank order, so that exposure and windowing do not matter and a
negative is exactly minus the film. Linear templates on it suffice: one for the upright chest, whose turned and negated
copies are the templates of turned and negated chests, and one for each half of a chest. They compete in a softmax
regression (`fit_templates`). How far a thumbnail lies off the few axes along which chests vary says whether it is a
chest at all (the distance from feature space of Moghaddam & Pentland 1997, sec. 3.1).

The alternative refused, a small network, would be a second model to train, to ship and to answer for.

The templates are in `orientation_templates.safetensors`, beside this module. They are sums over thousands of films; no
film can be had back from them. They were fitted to 2,653 films of half of Kermany's patients (Kermany, Zhang &
Goldbaum, "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification", Mendeley Data, CC BY
4.0) and 300 phantom films, and rounded to 255 levels an array, which `fit_templates` does not do.
`tests/models/gate/test_checks.py` fits them again from the same films, and measures the gate on those of the other
half. To make the file again, in the project's root:

    from tests.models.chest_films import kermany, phantoms
    films, _ = kermany(Path(os.environ["RAYSCAN_REAL_DATA"]))
    save_templates(fit_templates(films + phantoms(range(300))), TEMPLATES)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from models.errors import InputError

Floats = npt.NDArray[np.float32]
Orientation = Literal["upright", "inverted", "rotated", "cropped"]

SIDE: Final = 16
"""Of a thumbnail."""
SAMPLES: Final = 3
"""Pixels, across and down, that a cell of the thumbnail is the mean of."""
MARGIN: Final = 16
"""An edge of the film whose grey levels differ by less is a margin, and is cut off first."""
LEAST: Final = 0.25
"""Share of the film's side that must be left of it, else nothing is cut off."""
ORIENTATIONS: Final[tuple[Orientation, ...]] = (
    *("upright", "rotated", "rotated", "rotated"),
    *("inverted", "inverted", "inverted", "inverted"),
    *("cropped", "cropped", "cropped", "cropped"),
)
"""What each template stands for: a chest turned by 0, 90, 180, 270 degrees, the negatives of these, and the right (of
the patient: left in the picture), left, upper and lower half of a chest."""
AXES: Final = 16
"""Along which chests vary."""
PENALTY: Final = 1e-2
"""On half the squares of the templates, in `fit_templates`."""
TEMPLATES: Final = Path(__file__).with_name("orientation_templates.safetensors")
"""What the gate compares films with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Templates:
    """What thumbnails are compared with."""

    upright: Floats
    """[256]; a thumbnail's score is its product with a template."""
    parts: Floats
    """[3, 256]: the half of a chest that is left in the picture (mirrored: the right one), the upper and the lower."""
    offsets: Floats
    """[3], added to the scores of the parts."""
    mean: Floats
    """[256], of upright chests."""
    axes: Floats
    """Orthonormal [K, 256], along which these vary most."""

    @cache  # noqa: B019 (there is one of these in a process)
    def all(self) -> tuple[Floats, Floats]:
        """Templates [12, 256] and offsets [12] in the order of ORIENTATIONS."""
        upright = self.upright.reshape(SIDE, SIDE)
        turned = np.stack([np.rot90(upright, turns) for turns in range(4)])
        half, upper, lower = self.parts.reshape(3, SIDE, SIDE)
        parts = np.stack([half, half[:, ::-1], upper, lower])
        offsets = np.concatenate([np.zeros(8, np.float32), self.offsets[[0, 0, 1, 2]]])
        return np.concatenate([turned, -turned, parts]).reshape(len(ORIENTATIONS), -1), offsets


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a film's thumbnail shows."""

    orientation: Orientation
    """The likeliest."""
    lead: float
    """By how much its score lies above that of an upright chest, 0 or more: log odds under the softmax."""
    strangeness: float
    """Share of the thumbnail's variance, about, that upright chests do not explain."""
    righted: float
    """The same once the film is turned upright and, if a negative, inverted; for a part of a chest as `strangeness`."""


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Grey levels [H, W] without uniform margins as mid-ranks [16, 16], evenly spread over -1.7 to 1.7."""
    top, bottom, left, right = _without_margins(pixels)
    cells = _sampled(pixels, top, bottom, left, right).reshape(SIDE, SAMPLES, SIDE, SAMPLES)
    means = cells.sum(axis=(1, 3), dtype=np.float32).ravel()
    ordered = np.sort(means)
    below = ordered.searchsorted(means) + ordered.searchsorted(means, "right")
    ranks: Floats = (below.astype(np.float32) / SIDE**2 - 1) * np.float32(3**0.5)
    return ranks.reshape(SIDE, SIDE)


def look(pixels: npt.NDArray[np.uint8], templates: Templates) -> Look:
    """The orientation of a film, grey levels [H, W]."""
    small = thumbnail(pixels)
    against, offsets = templates.all()
    scores = against @ small.ravel() + offsets
    best = int(scores.argmax())
    strangeness = righted = _off_the_axes(small, templates)
    if 0 < best < 8:
        righted = _off_the_axes(np.rot90(small, -(best % 4)) * (1 if best < 4 else -1), templates)
    return Look(
        orientation=ORIENTATIONS[best], lead=float(scores[best] - scores[0]), strangeness=strangeness, righted=righted
    )


def fit_templates(films: Sequence[npt.NDArray[np.uint8]], *, seed: int = 0) -> Templates:
    """Templates from upright, whole chest films, grey levels [H, W] each; 10 s of CPU for 3,000 of them.

    Each film is shown upright, turned, negated and halved, itself and its mirror image. Raises `InputError` for fewer
    films than AXES.
    """
    if len(films) < AXES:
        raise InputError(f"templates from {len(films)} films would be those films; give {AXES} or more")
    rng = np.random.default_rng(seed)
    whole, shown, truth = [], [], []
    for film in films:
        for pixels in (film, film[:, ::-1]):
            small = thumbnail(pixels)
            turns, negated, part = (int(number) for number in rng.integers((1, 0, 0), (4, 4, 4)))
            whole.append(small.ravel())
            shown += [small, np.rot90(small, turns), -np.rot90(small, negated), thumbnail(_part(pixels, part, rng))]
            truth += [0, turns, 4 + negated, 8 + part]
    fitted = _softmax_regression(np.stack(shown), np.array(truth))
    mean = np.mean(whole, axis=0)
    _, _, right = np.linalg.svd(np.stack(whole) - mean, full_matrices=False)
    upright, parts, offsets = np.split(fitted, [SIDE**2, 4 * SIDE**2])
    return Templates(upright=upright, parts=parts.reshape(3, -1), offsets=offsets, mean=mean, axes=right[:AXES])


def save_templates(templates: Templates, path: Path) -> None:
    """Write them to a safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in vars(templates).items()}, path)


def load_templates(path: Path = TEMPLATES) -> Templates:
    """Read what `save_templates` wrote, bit for bit. Without a path: the templates the gate uses."""
    return Templates(**load_file(path))


def _without_margins(pixels: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First row, row after the last, first column and column after the last of what is not a uniform margin."""
    height, width = pixels.shape
    sample = _sampled(pixels, 0, height, 0, width)
    box = []
    for axis, length in ((1, height), (0, width)):
        spread = sample.max(axis=axis) - sample.min(axis=axis)
        shown = np.flatnonzero(spread >= MARGIN)
        enough = len(shown) > 0 and shown[-1] + 1 - shown[0] >= LEAST * len(spread)
        first, last = (int(shown[0]), int(shown[-1]) + 1) if enough else (0, len(spread))
        box += [first * length // len(spread), -(-last * length // len(spread))]
    return box[0], box[1], box[2], box[3]


def _sampled(pixels: npt.NDArray[np.uint8], top: int, bottom: int, left: int, right: int) -> npt.NDArray[np.uint8]:
    """Pixels [48, 48] of a box of the film, evenly spaced."""
    steps = 2 * np.arange(SIDE * SAMPLES) + 1
    rows = top + steps * (bottom - top) // (2 * len(steps))
    columns = left + steps * (right - left) // (2 * len(steps))
    sampled: npt.NDArray[np.uint8] = pixels[rows[:, None], columns]
    return sampled


def _off_the_axes(small: Floats, templates: Templates) -> float:
    centred = small.ravel() - templates.mean
    along = templates.axes @ centred
    return float(centred @ centred - along @ along) / SIDE**2


def _part(film: npt.NDArray[np.uint8], part: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """About half of a film: what lies left in it, right, above or below."""
    height, width = film.shape
    rows, columns = (int(length * rng.uniform(0.4, 0.55)) for length in (height, width))
    return (film[:, :columns], film[:, -columns:], film[:rows], film[-rows:])[part]


def _softmax_regression(shown: Floats, truth: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Thumbnails [N, 16, 16] and the index of each one's template -> upright [256], parts [3 x 256] and offsets [3]."""
    import torch  # noqa: PLC0415 (two seconds that only who fits needs)
    from torch.nn.functional import cross_entropy  # noqa: PLC0415

    films = torch.from_numpy(shown).double()
    # a turned template's product with a thumbnail is the template's with the thumbnail turned back
    back = torch.stack([films.rot90(-turns, (1, 2)).flatten(1) for turns in range(4)], dim=1)
    flat, mirrored, target = films.flatten(1), films.flip(2).flatten(1), torch.from_numpy(truth)
    theta = torch.zeros(4 * SIDE**2 + 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        upright, half, upper, lower, offsets = torch.split(theta, [SIDE**2] * 4 + [3])
        turned = back @ upright
        parts = torch.stack([flat @ half, mirrored @ half, flat @ upper, flat @ lower], dim=1) + offsets[[0, 0, 1, 2]]
        value = cross_entropy(torch.cat([turned, -turned, parts], dim=1), target)
        value = value + PENALTY / 2 * theta.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(mode=False), torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    found: npt.NDArray[np.float32] = theta.detach().float().numpy()
    return found
