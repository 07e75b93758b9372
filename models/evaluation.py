"""What a bundle says about one set of films: one entry of `evaluation.json`, or of the ledger of later evaluations."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import Calibration, called_positive
from models.metrics import Labels, evaluate, sensitivity_by_group


def evaluation_entry(
    *,
    split: str,
    labels: Labels,
    probability: npt.NDArray[np.float32],
    subtypes: npt.NDArray[np.str_],
    calibration: Calibration,
) -> dict[str, Any]:
    """Figures of calibrated probabilities of disease [N] as plain JSON values.

    {"split", "operating_point" (the default), "metrics" (at it), "operating_points": {name: metrics at it},
    "subtypes": {name: {"n", "sensitivity": {"value", "low", "high"}}} at the default}.
    Raises `RayscanError` for a probability that is no number, `InputError` unless both classes are there.
    """
    # `evaluate` compares float32 arrays in float32, as `called_positive` does, which also refuses what is no number
    probability = np.asarray(probability, dtype=np.float32)
    called_positive(probability, calibration.threshold)
    points = {name: evaluate(labels, probability, at).to_json() for name, at in calibration.operating_points.items()}
    groups = sensitivity_by_group(labels, probability, subtypes, calibration.threshold)
    return {
        "split": split,
        "operating_point": calibration.default,
        "metrics": points[calibration.default],
        "operating_points": points,
        "subtypes": {
            name: {"n": n, "sensitivity": {"value": share.value, "low": share.low, "high": share.high}}
            for name, (n, share) in groups.items()
        },
    }
