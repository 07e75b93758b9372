"""The page of `rayscan evaluate`: how one model did on one split of one dataset."""

from collections.abc import Mapping
from typing import Any

from models.pages.evaluation import evaluation_charts
from pipelines.results.pages.page import render


def evaluation_page(evaluation: Mapping[str, Any], *, model: str, model_id: str, dataset: str) -> str:
    """HTML of one evaluation: figures with intervals, ROC, confusion matrix, probabilities by class, calibration.

    `evaluation` is an entry as `models.statistics.evaluation.evaluation_entry` makes it; `model` is the model's name,
    `dataset` the URI of the dataset.
    """
    return render(
        "evaluation.html",
        title=f"Evaluation: {model} on {evaluation['split']}",
        entry=evaluation,
        at=evaluation["metrics"],
        model=model,
        model_id=model_id,
        dataset=dataset,
        charts=evaluation_charts(evaluation),
    )
