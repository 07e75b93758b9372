"""Sample films shown beside the figures: the model's most confident and its worst calls, each with its map.

A rule selects the films, so nobody can pick flattering ones.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.explain import method_for, picture, saliency
from models.films import Films
from models.networks.classifier import ScanClassifier
from models.statistics.calibration import called_positive
from models.statistics.metrics import Scores
from pipelines.pages.frame import data_uri

SIDE: Final = 224
"""Side of a picture in pixels."""
SURE: Final = 3
"""Number of true positives shown, each of another patient."""


def samples(
    classifier: ScanClassifier,
    films: Films,
    probability: Scores,
    threshold: float,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The entry `samples` of an evaluation, plain JSON: films by their calibrated probability of disease [N], and maps.

    {"method": of `models.explain`, or null for a network whose output does not depend on the film,
    "films": [{"kind", "truth" (of `classes`), "probability", "film", "map"}]}, the last two data URIs of square JPEGs.
    The classifier is in evaluation mode, with gradients on its device.
    """
    chosen = list(_chosen(films, probability, called_positive(probability, threshold)))
    shown = films.pixels[[at for _, at in chosen]]
    method = method_for(classifier)
    maps = saliency(classifier, shown, method=method)
    if not maps.any():
        return {"method": None, "films": []}
    return {
        "method": method,
        "films": [
            {
                "kind": kind,
                "truth": classes[films.labels[at]],
                "probability": float(probability[at]),
                "film": data_uri(np.asarray(Image.fromarray(film).resize((SIDE, SIDE), Image.Resampling.BICUBIC))),
                "map": data_uri(picture(film, heat, side=SIDE)),
            }
            for (kind, at), film, heat in zip(chosen, shown, maps, strict=True)
        ],
    }


def _chosen(films: Films, probability: Scores, called: npt.NDArray[np.bool_]) -> Iterator[tuple[str, int]]:
    """Kind and index of each film to show; empty kinds are left out, ties go to the first film."""
    diseased = films.labels != 0
    rising = np.argsort(probability, kind="stable")
    falling = np.argsort(-probability, kind="stable")
    patients: set[str] = set()
    for at in falling[(diseased & called)[falling]]:
        if films.patients[at] not in patients and len(patients) < SURE:
            patients.add(str(films.patients[at]))
            yield "true positive", int(at)
    for kind, side, order in (
        ("true negative", ~diseased & ~called, rising),
        ("worst miss", diseased & ~called, rising),
        ("worst false alarm", ~diseased & called, falling),
    ):
        candidates = order[side[order]]
        if len(candidates):
            yield kind, int(candidates[0])
