"""The page of `rayscan evaluate`: how one model did on one split of one dataset."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from models.metrics import Labels, Scores, confusion, wilson
from pipelines.contracts import LABELS
from pipelines.results.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below
from pipelines.results.pages.page import render

CALIBRATION_BINS: Final = 10
HISTOGRAM_BINS: Final = 25


def evaluation_page(
    evaluation: Mapping[str, Any],
    *,
    labels: Labels,
    probability: Scores,
    model: str,
    model_id: str,
    dataset: str,
) -> str:
    """HTML of one evaluation: ROC, confusion matrix, probabilities by class, calibration, figures with intervals.

    `evaluation` is an entry as `models.evaluation.evaluation_entry` makes it, from these same `labels` (class indices
    [N], 1 for pneumonia) and `probability` (calibrated, of pneumonia [N]). `model` is the model's name, `dataset` the
    URI of the dataset.
    """
    at = evaluation["metrics"]
    points = {name: float(point["threshold"]) for name, point in evaluation["operating_points"].items()}
    return render(
        "evaluation.html",
        title=f"Evaluation: {model} on {evaluation['split']}",
        entry=evaluation,
        at=at,
        model=model,
        model_id=model_id,
        dataset=dataset,
        bins=CALIBRATION_BINS,
        roc=roc_chart(labels, probability, points, auc=at["auc"]["value"]),
        precision_recall=precision_recall_chart(
            labels, probability, evaluation["over_patients"]["average_precision"]["value"]
        ),
        confusion=confusion_chart(at),
        histogram=histogram_chart(labels, probability, float(at["threshold"])),
        calibration=calibration_chart(labels, probability),
    )


def confusion_chart(at: Mapping[str, Any]) -> Markup:
    """The four counts of an `Evaluation.to_json()`, shaded by their share of the row."""
    counts = np.array([[at["tn"], at["fp"]], [at["fn"], at["tp"]]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def paint(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in np.ndindex(2, 2):
            right = row == column
            # At most half covered, so that the page's ink stays readable on it in light and dark
            cover = 0.06 + 0.44 * float(shares[row, column])
            colour = BLUE if right else VERMILION
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=cover, linewidth=0))
            axes.text(column, row - 0.08, f"{counts[row, column]:,}", ha="center", va="center", size=15)
            what = (("true negative", "false alarm"), ("missed", "true positive"))[row][column]
            axes.text(column, row + 0.2, f"{what}, {100 * shares[row, column]:.1f} %", ha="center", va="center", size=9)
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), xlabel="Called", ylabel="Truth")
        axes.set_xticks([0, 1], LABELS)
        axes.set_yticks([0, 1], LABELS, rotation=90, va="center")
        axes.tick_params(length=0)

    alt = "Confusion matrix: {tp} true positive, {fn} missed, {tn} true negative, {fp} false alarms".format_map(at)
    return chart(paint, alt=alt, height=3.1)


def roc_chart(labels: Labels, probability: Scores, points: Mapping[str, float], *, auc: float) -> Markup:
    """The ROC curve of labels [N] and probabilities [N], with the operating points marked on it."""
    false_alarms, sensitivity = roc_curve(labels, probability)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        axes.plot(false_alarms, sensitivity, color=BLUE, linewidth=2, clip_on=False)
        for (name, threshold), marker in zip(points.items(), "osD^v<>" * len(points), strict=False):
            tp, fp, tn, fn = confusion(labels, probability, threshold)
            place = (fp / (fp + tn), tp / (tp + fn))
            axes.plot(*place, marker, color=VERMILION, markersize=7, clip_on=False, zorder=3, label=name)
        axes.set(xlabel="False alarms (1 - specificity)", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1))
        axes.text(0.97, 0.08, f"AUC {auc:.3f}", ha="right", transform=axes.transAxes, size=12)
        legend_below(axes)

    return chart(paint, alt=f"ROC curve; the area under it is {auc:.3f}", height=3.3)


def roc_curve(labels: Labels, probability: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Share of false alarms and sensitivity at every threshold, from none called positive to all."""
    order = np.argsort(-probability, kind="stable")
    disease = labels[order] != 0
    # Films of equal probability are called together
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    hits = np.concatenate([[0], np.cumsum(disease)[last]])
    called = np.concatenate([[0], last + 1])
    return (called - hits) / max(1, int((~disease).sum())), hits / max(1, int(disease.sum()))


def precision_recall_chart(labels: Labels, probability: Scores, average_precision: float) -> Markup:
    """Positive predictive value against sensitivity, of labels [N] and probabilities [N]."""
    false_alarms, sensitivity = roc_curve(labels, probability)
    share = float((labels != 0).mean())
    found, alarms = sensitivity * share, false_alarms * (1 - share)
    precision = np.divide(found, found + alarms, out=np.ones_like(found), where=found + alarms > 0)

    def paint(axes: Axes) -> None:
        axes.axhline(share, color=GREY, linestyle=":", linewidth=1.2)
        axes.step(sensitivity, precision, where="pre", color=BLUE, linewidth=2, clip_on=False)
        axes.set(xlabel="Sensitivity", ylabel="Positive predictive value", xlim=(0, 1), ylim=(0, 1.005))
        axes.text(0.03, 0.08, f"average precision {average_precision:.3f}", transform=axes.transAxes, size=12)

    alt = f"Precision-recall curve; the average precision is {average_precision:.3f}"
    return chart(paint, alt=alt, height=3.3)


def histogram_chart(labels: Labels, probability: Scores, threshold: float) -> Markup:
    """How the probabilities [N] of each class lie, and the threshold between the calls."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)

    def paint(axes: Axes) -> None:
        sides = ((0, BLUE, "-", LABELS[0]), (1, VERMILION, "--", LABELS[1]))
        for index, colour, line, name in sides:
            counts, _ = np.histogram(probability[labels == index], edges)
            shares = 100 * counts / max(1, counts.sum())
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=line, label=name)
        axes.axvline(threshold, color=INK, linewidth=1.2, label=f"threshold {threshold:.3g}")
        axes.set(xlabel="Probability of pneumonia", ylabel="Films of the class (%)", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return chart(paint, alt="Histogram of the probabilities of films with and without pneumonia", height=3.2)


def calibration_chart(labels: Labels, probability: Scores) -> Markup:
    """Share of pneumonia against mean probability, in groups of about equally many films."""
    edges = np.quantile(probability.astype(np.float64), np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    group = np.searchsorted(edges, probability, side="right")
    filled = np.unique(group)
    predicted = np.array([probability[group == index].mean() for index in filled])
    truth = [labels[group == index] == 1 for index in filled]
    observed = [wilson(int(side.sum()), len(side)) for side in truth]

    def paint(axes: Axes) -> None:
        value = np.array([share.value for share in observed])
        reach = np.array([[share.value - share.low, share.high - share.value] for share in observed]).T
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        axes.errorbar(
            predicted,
            value,
            yerr=np.maximum(reach, 0),
            color=BLUE,
            marker="o",
            markersize=5,
            linewidth=1.2,
            clip_on=False,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Probability of pneumonia (mean of the group)")
        axes.set_ylabel("Films with pneumonia (share)")

    return chart(paint, alt="Calibration: share of films with pneumonia against their probability", height=3.2)
