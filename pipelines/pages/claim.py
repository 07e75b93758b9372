"""The items of CLAIM, the Checklist for Artificial Intelligence in Medical Imaging, that a bundle can answer.

2024 update: Tejani et al. 2024, Radiology: Artificial Intelligence 6:e240300; numbers and names of the 44 items as in
the paper. Authors of a report on a model find here what rayscan knows, and whom to ask for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from models.spec import ModelSpec
from models.statistics.calibration import Calibration
from pipelines.pages.frame import interval, plain

OWNER: Final = "the owner of the films"
LABELLERS: Final = "the readers who labelled the films"
AUTHORS: Final = "the authors of the report"
METHOD_NAMES: Final = {
    "occlusion": "occlusion (how much the score falls when a patch of the film is covered)",
    "gradients": "integrated gradients (how much each pixel adds to the score, from a blank film to this one)",
    "cam": "HiResCAM (how much each location of the network's last feature maps adds to the score)",
}
"""The methods of `models.explain`, in words."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of the checklist."""

    number: int
    name: str
    answer: str = ""
    """What rayscan knows; empty if nothing."""
    owed: str = ""
    """Who must fill in what rayscan does not know; empty if nothing is missing."""


def claim(
    spec: ModelSpec, calibration: Calibration, entry: Mapping[str, Any] | None, lineage: Mapping[str, Any]
) -> list[Item]:
    """The 44 items. `entry`: the evaluation on validation films, as made by `models.statistics.evaluation`."""
    known = {
        **_INTRODUCTION,
        **_of_data(spec, lineage),
        **_of_model(spec, lineage),
        **_METHODS,
        **({} if entry is None else _of_results(entry, calibration)),
        **_OTHER,
    }
    return [Item(number=number, name=name, **_filled(known.get(number, ""), _OWED.get(number, "")))
            for number, name in enumerate(_NAMES, start=1)]  # fmt: skip


def _filled(answer: str, owed: str) -> dict[str, str]:
    return {"answer": answer, "owed": owed if answer else owed or AUTHORS}


_NAMES: Final = (
    "Identification as a study of AI methodology, specifying the category of technology used",
    "Summary of study design, methods, results, and conclusions",
    "Scientific and/or clinical background, including the intended use and role of the AI approach",
    "Study aims, objectives, and hypotheses",
    "Prospective or retrospective study",
    "Study goal",
    "Data sources",
    "Inclusion and exclusion criteria",
    "Data pre-processing",
    "Selection of data subsets",
    "De-identification methods",
    "How missing data were handled",
    "Image acquisition protocol",
    "Definition of method(s) used to obtain reference standard",
    "Rationale for choosing the reference standard",
    "Source of reference standard annotations",
    "Annotation of test set",
    "Measures of inter- and intra-rater variability of features described by the annotators",
    "How data were assigned to partitions",
    "Level at which partitions are disjoint",
    "Intended sample size",
    "Detailed description of model",
    "Software libraries, frameworks, and packages",
    "Initialization of model parameters",
    "Details of training approach",
    "Method of selecting the final model",
    "Ensembling techniques",
    "Metrics of model performance",
    "Statistical measures of significance and uncertainty",
    "Robustness or sensitivity analysis",
    "Methods for explainability or interpretability",
    "Evaluation on internal data",
    "Testing on external data",
    "Clinical trial registration",
    "Numbers of patients or examinations included and excluded",
    "Demographic and clinical characteristics of cases in each partition",
    "Performance metrics and measures of statistical uncertainty",
    "Estimates of diagnostic performance and their precision",
    "Failure analysis of incorrect results",
    "Study limitations",
    "Implications for practice",
    "Reference to full study protocol or additional technical details",
    "Availability of software, trained model, and/or data",
    "Sources of funding and other support; role of funders",
)

_OWED: Final = {
    **dict.fromkeys((2, 4, 42, 44), AUTHORS),
    3: f"{AUTHORS} (the background)",
    7: f"{OWNER} (hospitals, years, devices)",
    8: f"{OWNER} (who was imaged, and why)",
    11: f"{OWNER} (what was done before rayscan read the films; text burnt into the pixels)",
    13: OWNER,
    **dict.fromkeys((14, 15, 16, 17, 18), LABELLERS),
    21: f"{AUTHORS} (how many films a test needs)",
    33: "someone with films of another hospital, using rayscan evaluate",
    34: AUTHORS,
    35: f"{OWNER} (how many were excluded; rayscan audit counts them)",
    36: f"{OWNER} (rayscan stores neither age nor sex)",
    41: "the department that uses it",
    43: f"{AUTHORS} (model and films)",
}

_INTRODUCTION: Final = {
    3: "Triage: frontal chest films ordered for reading by a radiologist; see Intended use.",
    5: "Retrospective: the films were in an archive, with their labels, before the model was made.",
    8: "Films of the catalogue that have a label and can be decoded.",
    10: "None: each film is used whole, stretched to a square.",
    11: "Patients are identified by a keyed hash (HMAC-SHA256); names, birth dates and raw ids are never written.",
    12: "Files without a label and files that cannot be decoded are excluded; a film without a patient id counts as a"
    " patient of its own.",
}

_METHODS: Final = {
    19: "By patient, stratified by class and seeded; a split that came with the films was kept.",
    20: "Patient: no patient is in two splits.",
    27: "None; one network.",
    28: "AUC, average precision, sensitivity, specificity, accuracy, F1, Matthews correlation, Brier score, log loss,"
    " expected calibration error; predictive values at stated prevalences.",
    29: "95 % confidence intervals: DeLong for AUC, Wilson for proportions, and 1,000 bootstrap draws of patients for"
    " all metrics.",
}

_OTHER: Final = {
    40: "See Limits.",
    41: "See Intended use: every film is still read by a radiologist.",
    42: "This card, and bundle.json, calibration.json and evaluation.json beside it.",
    43: "Software: rayscan, under Apache-2.0, of the version under item 23.",
}


def _of_data(spec: ModelSpec, lineage: Mapping[str, Any]) -> dict[int, str]:
    counts = lineage.get("counts", {})
    fingerprint = lineage.get("dataset_fingerprint")
    included = "; ".join(
        f"{split}: {count['films']:,} films of {count['patients']:,} patients" for split, count in counts.items()
    )
    preprocessing = spec.preprocessing
    seen = f", {preprocessing.as_seen}" if preprocessing.as_seen else ""
    return {
        6: f"To make a model that tells {' and '.join([', '.join(spec.classes[:-1]), spec.classes[-1]])} apart.",
        7: f"Data set of fingerprint {fingerprint}." if fingerprint else "",
        9: f"Decoded to {preprocessing.film_size} x {preprocessing.film_size} grey levels"
        f" ({preprocessing.decode}){seen}, shrunk to {preprocessing.size} x {preprocessing.size}, normalised"
        f" ({preprocessing.normalise}).",
        35: f"Included: {included}." if included else "",
    }


def _of_model(spec: ModelSpec, lineage: Mapping[str, Any]) -> dict[int, str]:
    kind = {
        "majority": "No learning from pixels: the prevalence among the training films, as a baseline",
        "mlp": "Deep learning: a multi-layer perceptron",
        "cnn": "Deep learning: a convolutional neural network",
    }
    training, history = lineage.get("training", {}), lineage.get("history", [])
    weights = lineage.get("recipe", {}).get("weights")
    start = f"Pretrained weights: {weights}." if weights else "Random."
    seed = f" Seed {lineage['seed']}." if "seed" in lineage else ""
    chosen = f"The best validation AUC of {len(history)} epochs" if history else ""
    if "folds" in lineage:
        chosen = f"The mean of the logits of the models of all folds ({lineage['folds']}), each after its last epoch"
    searches = {"grid": "the combinations of a grid", "study": "the trials of a study"}
    among = "".join(f", and of {what}" for name, what in searches.items() if name in lineage)
    robust = "; of the few best, the one best on perturbed copies" if lineage.get("selection") else ""
    return {
        1: f"{kind.get(spec.name, 'Deep learning: the network ' + spec.name + ' of timm')}.",
        22: f"{spec.name} ({plain(spec.parameters)}): one grey film of {spec.preprocessing.size} x"
        f" {spec.preprocessing.size} in, {len(spec.classes)} calibrated probabilities out. The bundle holds all of"
        " it.",
        23: f"{plain(lineage['versions'])}." if "versions" in lineage else "",
        24: f"{start}{seed}" if training else "",
        25: f"{plain(training)}." if training else "",
        26: f"{chosen}{among}{robust}." if chosen else "",
    }


def _of_results(entry: Mapping[str, Any], calibration: Calibration) -> dict[int, str]:
    at, robust, shown = entry["metrics"], entry.get("robustness"), entry.get("samples")
    point = entry["operating_point"]
    patients = entry.get("over_patients", {}).get("auc")
    over = f"; patient bootstrap {interval(patients)}" if patients else ""
    judged = (
        "Cross-validation within the training films, by folds; they were also used for calibration and thresholds"
        if "out_of_fold" in entry
        else "On the validation films, which were also used to choose epoch, calibration and thresholds"
    )
    worst = "" if robust is None else f"{robust['worst']}, {robust['changed'][robust['worst']]['auc']:.3f}"
    return {
        2: f"On {at['n']:,} validation films: AUC {interval(at['auc'])}.",
        21: f"None was set; {at['n']:,} validation films were available.",
        30: ""
        if robust is None
        else f"{robust['films']:,} validation films, each perturbed in {len(robust['changed'])} ways: mean AUC"
        f" {robust['mean_auc']:.3f}, unperturbed {robust['auc']:.3f}; worst: {worst}.",
        31: f"Maps by {METHOD_NAMES[shown['method']]}; not compared with findings marked by readers."
        if shown and shown["method"]
        else "None.",
        32: f"{judged}: AUC {interval(at['auc'])}.",
        33: "None in this bundle.",
        37: f"AUC {interval(at['auc'])}{over}; Brier score {at['brier']:.3f}; calibration error {at['ece']:.3f}.",
        38: f"At {point} ({calibration.threshold:.4g}): sensitivity {interval(at['sensitivity'])}, specificity"
        f" {interval(at['specificity'])}.",
        39: f"{at['fn']:,} missed and {at['fp']:,} false alarms at {point}, by subgroup above; the worst of each are"
        " shown if this card holds films.",
    }
