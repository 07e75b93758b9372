"""The figures of a model on one set of films: one entry of `evaluation.json`, or of the ledger of later evaluations."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.statistics.bootstrap import count_patients, draws, figures, intervals, predictive_values
from models.statistics.calibration import Calibration, called_positive
from models.statistics.curves import curves
from models.statistics.metrics import Labels, auc_interval, evaluate, sensitivity_by_group, wilson

PREVALENCES: Final = (0.01, 0.05, 0.2, 0.5)
"""Shares of disease for which predictive values are stated: screening, an emergency department, a children's ward."""
LEAST_GROUP: Final = 10
"""Films of a subgroup, at least; of fewer the intervals say nothing."""
MOST_GROUPS: Final = 20
"""Subgroups of one kind, the largest first."""

Groups = Mapping[str, npt.NDArray[np.str_]]
"""Kind of subgroup (site, view, …) -> its name for each film [N]; empty where a film belongs to none."""


def evaluation_entry(
    *,
    split: str,
    labels: Labels,
    probability: npt.NDArray[np.float32],
    subtypes: npt.NDArray[np.str_],
    calibration: Calibration,
    patients: npt.NDArray[np.str_] | None = None,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Figures of calibrated probabilities of disease [N] as plain JSON values.

    {"split", "operating_point" (the default), "metrics" (at it), "operating_points": {name: metrics at it},
    "subtypes": {name: {"n", "sensitivity": {"value", "low", "high"}}} at the default,
    "over_patients": {figure: {"value", "low", "high"}} at the default, intervals by drawing patients (films where
    `patients` [N] is None), "predictive_values": [{"prevalence", "ppv", "npv"}] likewise,
    "groups": {kind: {name: {"n", "positives", "auc", "sensitivity", "specificity"}}}, null where there are no films,
    "curves": what `models.statistics.curves` gives}.
    `labels` [N] are 0 for no disease. Raises `RayscanError` for a probability that is no number, `InputError` unless
    both classes are there.
    """
    # `evaluate` compares float32 arrays in float32, as `called_positive` does, which also refuses what is no number
    probability = np.asarray(probability, dtype=np.float32)
    called_positive(probability, calibration.threshold)
    disease = (labels != 0).astype(np.int64)
    points = {name: evaluate(disease, probability, at).to_json() for name, at in calibration.operating_points.items()}
    of_subtypes = sensitivity_by_group(disease, probability, subtypes, calibration.threshold)
    units = np.arange(len(labels)).astype(str) if patients is None else patients
    return {
        "split": split,
        "operating_point": calibration.default,
        "metrics": points[calibration.default],
        "operating_points": points,
        "subtypes": {name: {"n": n, "sensitivity": asdict(share)} for name, (n, share) in of_subtypes.items()},
        **_over_patients(disease, probability, calibration.threshold, units),
        "groups": {
            kind: _by_group(disease, probability, names, calibration.threshold)
            for kind, names in (groups or {}).items()
        },
        "curves": curves(disease, probability),
    }


def _over_patients(
    disease: Labels, probability: npt.NDArray[np.float32], threshold: float, patients: npt.NDArray[np.str_]
) -> dict[str, Any]:
    at = float(np.float32(threshold))
    value = {name: float(values[0]) for name, values in figures(disease, probability, at).items()}
    drawn = figures(disease, probability, at, draws(patients))
    people = count_patients(disease, patients)
    predictive = []
    for prevalence in PREVALENCES:
        known = predictive_values(value, prevalence)
        # a test that never calls a film positive has no positive predictive value
        defined = {name: float(share) for name, share in known.items() if np.isfinite(share)}
        found = intervals(defined, predictive_values(drawn, prevalence), people)
        row = {name: asdict(found[name]) if name in found else None for name in ("ppv", "npv")}
        predictive.append({"prevalence": prevalence, **row})
    return {
        "over_patients": {name: asdict(interval) for name, interval in intervals(value, drawn, people).items()},
        "predictive_values": predictive,
    }


def _by_group(
    disease: Labels, probability: npt.NDArray[np.float32], names: npt.NDArray[np.str_], threshold: float
) -> dict[str, Any]:
    found, counts = np.unique(names[names != ""], return_counts=True)
    largest = [
        str(name) for name, n in sorted(zip(found, counts, strict=True), key=lambda x: -x[1]) if n >= LEAST_GROUP
    ]
    return {
        name: _group(disease[names == name], probability[names == name], threshold) for name in largest[:MOST_GROUPS]
    }


def _group(disease: Labels, probability: npt.NDArray[np.float32], threshold: float) -> dict[str, Any]:
    called = called_positive(probability, threshold)
    ill, well = disease == 1, disease == 0
    return {
        "n": len(disease),
        "positives": int(ill.sum()),
        "auc": asdict(auc_interval(disease, probability)) if ill.any() and well.any() else None,
        "sensitivity": asdict(wilson(int(called[ill].sum()), int(ill.sum()))) if ill.any() else None,
        "specificity": asdict(wilson(int((~called[well]).sum()), int(well.sum()))) if well.any() else None,
    }
