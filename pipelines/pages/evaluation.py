"""The page of `rayscan evaluate`: the results of one model on one split of a data set."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipelines.pages.evaluation_charts import evaluation_charts
from pipelines.pages.frame import render


def evaluation_page(evaluation: Mapping[str, Any], *, model: str, model_id: str, dataset: str) -> str:
    """HTML of one evaluation: figures with intervals, ROC, confusion matrix, probabilities by class, calibration.

    `evaluation` is an entry as `models.statistics.evaluation.evaluation_entry` makes it; `model` is the model's name,
    `dataset` the URI of the dataset.
    """
    return render(
        "evaluation.html",
        made=datetime.now(UTC),
        title=f"Evaluation: {model} on {evaluation['split']}",
        entry=evaluation,
        at=evaluation["metrics"],
        model=model,
        model_id=model_id,
        dataset=dataset,
        charts=evaluation_charts(evaluation),
    )
