"""How a model's validation films are distributed: the reference that an archive's films are compared with for drift.

Of each quantity (the probability, the grey levels, the distance in feature space) a bundle keeps its distribution over
the validation films: shares between deciles for the population stability index, and percentiles for the
Kolmogorov-Smirnov distance. They are films the weights were not fitted to, so their probabilities are distributed
as those of new films from the same source would be.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

BINS: Final = 10
QUANTITIES: Final = ("probability", "grey_mean", "grey_spread", "ood_score")
"""Columns of the scores that drift is judged by."""


def grey_statistics(film: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of the grey levels [H, W] of a decoded film, 0 to 255."""
    # From the histogram: exact, and a quarter of the time of float arithmetic over the pixels.
    counts = np.array(Image.fromarray(film).histogram(), dtype=np.int64)
    levels = np.arange(256)
    mean = float(counts @ levels) / film.size
    return mean, float(np.sqrt(max(0.0, float(counts @ levels**2) / film.size - mean**2)))


def reference(values: npt.NDArray[np.floating[Any]]) -> dict[str, list[float]] | None:
    """How the finite ones of values [N] are spread; None when there are none.

    {"edges": inner bin edges, rising and distinct; "shares": of the len(edges) + 1 bins they make, left edge included;
    "percentiles": the 0th to the 100th}.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) == 0:
        return None
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {
        "edges": edges.tolist(),
        "shares": (counts / len(values)).tolist(),
        "percentiles": np.percentile(values, np.arange(101)).tolist(),
    }


def fingerprint(
    pixels: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.floating[Any]],
    distance: npt.NDArray[np.floating[Any]],
) -> dict[str, Any]:
    """The fingerprint of films uint8 [N, H, W] with their probabilities [N] and distances [N], as plain JSON values.

    {"films": N, and each of `QUANTITIES`: a `reference`}. A bundle holds it as evaluation["val"]["fingerprint"].
    """
    grey = np.array([grey_statistics(film) for film in pixels], dtype=np.float64).reshape(-1, 2)
    columns: Mapping[str, npt.NDArray[Any]] = {
        "probability": probability,
        "grey_mean": grey[:, 0],
        "grey_spread": grey[:, 1],
        "ood_score": distance,
    }
    return {"films": len(pixels), **{name: reference(columns[name]) for name in QUANTITIES}}
