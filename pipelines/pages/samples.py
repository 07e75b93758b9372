"""A few films to look at beside the figures: what the model was sure of, and what it got most wrong, each with its map.

Which films is a rule, not a choice: the surest and the worst. So nobody picks what looks well.
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
"""Pixels of a picture."""
SURE: Final = 3
"""True positives that are shown, of as many patients."""


def samples(
    classifier: ScanClassifier,
    films: Films,
    probability: Scores,
    threshold: float,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The entry `samples` of an evaluation, plain JSON: films by their calibrated probability of disease [N], and maps.

    {"method": of `models.explain`, or null for a network whose output depends on no part of the film,
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
    """Kind and index of each film to show; kinds of which there is none are left out, of equals the first is taken."""
    ill = films.labels != 0
    rising = np.argsort(probability, kind="stable")
    falling = np.argsort(-probability, kind="stable")
    patients: set[str] = set()
    for at in falling[(ill & called)[falling]]:
        if films.patients[at] not in patients and len(patients) < SURE:
            patients.add(str(films.patients[at]))
            yield "true positive", int(at)
    for kind, side, order in (
        ("true negative", ~ill & ~called, rising),
        ("worst miss", ill & ~called, rising),
        ("worst false alarm", ~ill & called, falling),
    ):
        found = order[side[order]]
        if len(found):
            yield kind, int(found[0])
