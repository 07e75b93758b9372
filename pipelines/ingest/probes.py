"""How well a small model tells the classes apart by what should tell it nothing: an AUC, cross-validated by patient.

Gradient-boosted trees for facts, a strongly regularised logistic regression for pixels: both learn what a network would
learn in its first minutes, and neither can learn more than is there. 0.5 is chance.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from models.statistics.metrics import auc

LEAST: Final = 20
"""Films and patients a class, below which nothing is probed."""
FOLDS: Final = 5

Features = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]
Patients = npt.NDArray[np.str_]


def probe_facts(facts: Features, labels: Labels, patients: Patients) -> float | None:
    """AUC of trees on facts [N, F], NaN where unknown; labels [N] are 0 or 1. None with too few films or patients."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415 (a second, and only here)

    return _crossed(HistGradientBoostingClassifier(max_depth=3, max_iter=60, random_state=0), facts, labels, patients)


def probe_pixels(pixels: Features, labels: Labels, patients: Patients) -> float | None:
    """AUC of a linear model on pixels [N, P]; 0.5 where all are alike. None with too few films or patients."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
    return _crossed(model, pixels, labels, patients)


def _crossed(model: object, features: Features, labels: Labels, patients: Patients) -> float | None:
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict  # noqa: PLC0415

    people = [len(set(patients[labels == label])) for label in (0, 1)]
    if min(people) < LEAST:
        return None
    features = np.nan_to_num(features, nan=-1.0)  # that a fact is unknown is a fact, too
    features = features[:, (features != features[:1]).any(axis=0)]
    if not features.size:
        return 0.5
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, groups=patients, cv=folds, method="predict_proba")
    return round(float(auc(labels, scores[:, 1])), 3)
