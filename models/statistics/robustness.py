"""How much a model loses on perturbed copies of its films: changes that films of another hospital might show.

Validation films come from the archive the model was trained on, so their AUC says nothing about another one. These
copies are no other hospital either; but a model that relies on the exposure, the sharpness, the shape or the coding of
its own archive loses here first, so the mean over them chooses better between models than the AUC alone.

What fails first is the threshold, not the order of the films. MobileNetV2 0.35 at 128 px, on Kermany validation films
made taller: AUC 0.994 instead of 0.997, but specificity 0.41 instead of 0.97 at the threshold locked on the films as
they are. So decisions at a threshold are judged, too, with healthy and diseased films counted alike. Thresholds are not
locked on copies: that costs accuracy on films that are not perturbed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from models.errors import InputError
from models.statistics.calibration import called_positive
from models.statistics.metrics import Labels, Scores, auc

Film = npt.NDArray[np.uint8]

GAMMA: Final = 1.6
CONTRAST: Final = 0.6
BLUR: Final = 0.008
"""Standard deviation, of the side: 1.8 pixels of 224."""
JPEG: Final = 15
"""Quality, as libjpeg counts it."""
SMALLER: Final = 3
KEPT: Final = 0.85
"""Side of the crop, of the film's."""
STRETCHED: Final = 0.8
"""Width or height that stays of a film stretched over the whole side. Films of any shape are made square, so the shape
of an archive's films, by which its classes may differ, shows as stretch."""


def _curve(levels: npt.NDArray[np.float64]) -> Callable[[Film], Film]:
    table = np.clip(np.round(255 * levels), 0, 255).astype(np.uint8)
    return lambda film: table[film]


def _coded(film: Film) -> Film:
    sink = BytesIO()
    Image.fromarray(film).save(sink, "JPEG", quality=JPEG)
    return np.asarray(Image.open(sink))


def _through(change: Callable[[Image.Image], Image.Image]) -> Callable[[Film], Film]:
    return lambda film: np.asarray(change(Image.fromarray(film)))


def _shrunk(image: Image.Image) -> Image.Image:
    small = image.resize((image.width // SMALLER, image.height // SMALLER), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def _middle(across: float, down: float) -> Callable[[Image.Image], Image.Image]:
    """Keep these shares of width and height, and resize them to the whole side."""

    def kept(image: Image.Image) -> Image.Image:
        left, top = round(image.width * (1 - across) / 2), round(image.height * (1 - down) / 2)
        box = (left, top, image.width - left, image.height - top)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=box)

    return kept


_GREYS: Final = np.arange(256) / 255

CHANGES: Final[Mapping[str, Callable[[Film], Film]]] = {
    "darker": _curve(_GREYS**GAMMA),
    "brighter": _curve(_GREYS ** (1 / GAMMA)),
    "flatter": _curve(0.5 + CONTRAST * (_GREYS - 0.5)),
    "harder": _curve(0.5 + (_GREYS - 0.5) / CONTRAST),
    "blurred": _through(lambda image: image.filter(ImageFilter.GaussianBlur(BLUR * image.width))),
    "recoded": _coded,
    "coarser": _through(_shrunk),
    "cropped": _through(_middle(KEPT, KEPT)),
    "wider": _through(_middle(STRETCHED, 1)),
    "taller": _through(_middle(1, STRETCHED)),
}
"""Name -> what it does to one film uint8 [H, W]; always the same."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """A model's probabilities for N films, and for each perturbed copy of them."""

    labels: Labels
    """1 for disease, 0 for none [N]."""
    plain: Scores
    """Probability of disease of the films as they are [N]."""
    changed: Mapping[str, Scores]
    """Change -> that of their copies [N]."""


def join_copies(parts: Sequence[Copies]) -> Copies:
    """All films together, each with its own model's scores."""
    return Copies(
        labels=np.concatenate([part.labels for part in parts]),
        plain=np.concatenate([part.plain for part in parts]),
        changed={name: np.concatenate([part.changed[name] for part in parts]) for name in parts[0].changed},
    )


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """How a model did on the films as they are, and on each changed copy of them."""

    films: int
    auc: float
    balanced_accuracy: float
    changed: Mapping[str, Mapping[str, float]]
    """Change -> `auc`, and at the threshold `sensitivity`, `specificity` and `balanced_accuracy`, the mean of these
    two: none depends on prevalence."""
    mean_auc: float
    """Over the changes, as the next."""
    mean_balanced_accuracy: float
    worst: str
    """The change of the lowest balanced accuracy; of equals, of the lowest AUC."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def perturbed(pixels: npt.NDArray[np.uint8], change: str) -> npt.NDArray[np.uint8]:
    """Changed copies of films uint8 [N, H, W]. Raises `InputError` for an unknown change."""
    if change not in CHANGES:
        raise InputError(f"unknown change {change!r}; choose from {', '.join(CHANGES)}")
    return np.stack([CHANGES[change](film) for film in pixels])


def score_copies(
    score: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]], pixels: npt.NDArray[np.uint8], labels: Labels
) -> Copies:
    """Score films uint8 [N, H, W] with labels [N], 0 for no disease, as they are and changed.

    `score` gives the probability of disease [N] of films.
    """
    return Copies(
        labels=(labels != 0).astype(np.int64),
        plain=score(pixels),
        changed={change: score(perturbed(pixels, change)) for change in CHANGES},
    )


def robustness(copies: Copies, threshold: float) -> Robustness:
    """The figures of a model on films and on their copies. Raises `InputError` unless both classes are there."""
    changed = {change: _figures(copies.labels, scores, threshold) for change, scores in copies.changed.items()}
    plain = _figures(copies.labels, copies.plain, threshold)
    return Robustness(
        films=len(copies.labels),
        auc=plain["auc"],
        balanced_accuracy=plain["balanced_accuracy"],
        changed=changed,
        mean_auc=float(np.mean([at["auc"] for at in changed.values()])),
        mean_balanced_accuracy=float(np.mean([at["balanced_accuracy"] for at in changed.values()])),
        worst=min(changed, key=lambda change: (changed[change]["balanced_accuracy"], changed[change]["auc"])),
    )


def _figures(disease: Labels, probability: Scores, threshold: float) -> dict[str, float]:
    called = called_positive(probability, threshold)
    sensitivity, specificity = float(called[disease == 1].mean()), float((~called[disease == 0]).mean())
    return {
        "auc": auc(disease, probability),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }
