"""The page of one evaluation."""

from models.statistics.calibration import Calibration
from pipelines.pages.evaluation import evaluation_page
from pipelines.pages.frame import interval
from tests.pipelines.pages.samples import (
    HOSTILE,
    MODEL_ID,
    Page,
    entry,
    read_page,
)


def page_of(*, model: str = "cnn", calibration: Calibration | None = None) -> Page:
    evaluation = entry("test", seed=1, calibration=calibration)
    return read_page(evaluation_page(evaluation, model=model, model_id=MODEL_ID, dataset="s3://films/kermany"))


def test_figures_and_charts() -> None:
    page, metrics = page_of(), entry("test", seed=1)["metrics"]
    assert "Evaluation: cnn on test" in page.text
    assert MODEL_ID in page.text
    assert interval(metrics["auc"]) in page.text
    assert f"Missed {metrics['fn']} of {metrics['positives']} with pneumonia" in page.text
    assert "virus" in page.text
    kinds = [chart.split()[0] for chart in page.charts]
    assert kinds == ["ROC", "Precision-recall", "Confusion", "Histogram", "Calibration:"]
    evaluation = entry("test", seed=1)
    assert interval(evaluation["over_patients"]["mcc"]) in page.text
    assert interval(evaluation["predictive_values"][0]["ppv"]) in page.text


def test_hostile_text_is_text_in_charts_too() -> None:
    calibration = Calibration(temperature=1.0, operating_points={HOSTILE: 0.4}, default=HOSTILE)
    page = page_of(model=HOSTILE, calibration=calibration)
    assert page.text.count(HOSTILE) >= 5
