"""The charts of an evaluation, and of the training before it, from the entries of a bundle or ledger."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from models.statistics.curves import HISTOGRAM_BINS
from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below, show_corner, whole_numbers

Entry = Mapping[str, Any]
"""As `models.statistics.evaluation.evaluation_entry` makes it."""
SIDES = ("without", "with pneumonia")


def evaluation_charts(entry: Entry) -> list[tuple[Markup, str]]:
    """The charts of an entry, each with its caption; only the confusion matrix if the entry has no curves."""
    point = entry["operating_point"]
    calls = (confusion_chart(entry["metrics"]), f"Calls at the operating point {point}. Percentages are of the row.")
    if "curves" not in entry:
        return [calls]
    return [
        (_roc(entry), "Each point of the curve is a threshold; the marks are the locked operating points."),
        (
            _precision_recall(entry),
            "Positive predictive value (share of positive calls with pneumonia) against sensitivity."
            " The dotted line is random guessing.",
        ),
        calls,
        (_histogram(entry), "Each class adds up to 100 %, whatever its number of films."),
        (
            _calibration(entry),
            f"Films in {len(entry['curves']['calibration'])} groups of rising probability; bars are 95 % intervals."
            " On the dotted line, calibration is perfect.",
        ),
    ]


def confusion_chart(at: Mapping[str, Any]) -> Markup:
    """Confusion matrix of an `Evaluation.to_json()`, cells shaded by their share of the row."""
    counts = np.array([[at["tn"], at["fp"]], [at["fn"], at["tp"]]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def paint(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in np.ndindex(2, 2):
            right = row == column
            # At most half opaque, so that the page's text stays readable in light and dark mode
            cover = 0.06 + 0.44 * float(shares[row, column])
            colour = BLUE if right else VERMILION
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=cover, linewidth=0))
            axes.text(column, row - 0.08, f"{counts[row, column]:,}", ha="center", va="center", size=15)
            what = (("true negative", "false alarm"), ("missed", "true positive"))[row][column]
            axes.text(column, row + 0.2, f"{what}, {100 * shares[row, column]:.1f} %", ha="center", va="center", size=9)
        axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), xlabel="Called", ylabel="Truth")
        axes.set_xticks([0, 1], ("negative", "positive"))
        axes.set_yticks([0, 1], SIDES, rotation=90, va="center")
        axes.tick_params(length=0)

    alt = "Confusion matrix: {tp} true positive, {fn} missed, {tn} true negative, {fp} false alarms".format_map(at)
    return chart(paint, alt=alt, height=3.1)


def losses_chart(history: Sequence[Mapping[str, Any]]) -> Markup:
    """Training and validation loss of each epoch."""
    epochs = [row["epoch"] for row in history]

    def paint(axes: Axes) -> None:
        axes.plot(epochs, [row["train_loss"] for row in history], "o-", color=GREY, markersize=4, label="training")
        axes.plot(
            epochs, [row["val_loss"] for row in history], "s--", color=VERMILION, markersize=4, label="validation"
        )
        axes.set(xlabel="Epoch", ylabel="Loss (nats)")
        whole_numbers(axes.xaxis)
        legend_below(axes)

    return chart(paint, alt="Training and validation loss by epoch")


def aucs_chart(history: Sequence[Mapping[str, Any]], best: int | None) -> Markup:
    """Validation AUC of each epoch; the epoch whose weights were kept is marked."""

    def paint(axes: Axes) -> None:
        axes.plot(
            [row["epoch"] for row in history], [row["val_auc"] for row in history], "o-", color=BLUE, markersize=4
        )
        kept = [row["val_auc"] for row in history if row["epoch"] == best]
        if best is not None and kept:
            axes.plot(best, kept[0], "o", color=VERMILION, markersize=9, label=f"epoch {best}, kept")
            legend_below(axes)
        axes.set(xlabel="Epoch", ylabel="AUC, validation films")
        whole_numbers(axes.xaxis)

    return chart(paint, alt="AUC on the validation films by epoch")


def _roc(entry: Entry) -> Markup:
    auc = entry["metrics"]["auc"]["value"]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        axes.plot(*np.array(entry["curves"]["roc"]).T, color=BLUE, linewidth=2)
        points = sorted(entry["operating_points"].items(), key=lambda point: point[1]["threshold"])
        places = [(at["fp"] / (at["fp"] + at["tn"]), at["tp"] / (at["tp"] + at["fn"])) for _, at in points]
        for (name, _), place, marker in zip(points, places, "osD^v<>" * len(points), strict=False):
            axes.plot(*place, marker, color=VERMILION, markersize=7, clip_on=False, zorder=3, label=name)
        show_corner(axes, auc, places)
        axes.text(0.97, 0.08, f"AUC {auc:.3f}", ha="right", transform=axes.transAxes, size=12)
        legend_below(axes)

    return chart(paint, alt=f"ROC curve; the area under it is {auc:.3f}", height=3.3)


def _precision_recall(entry: Entry) -> Markup:
    share = entry["metrics"]["positives"] / entry["metrics"]["n"]
    average = entry["over_patients"]["average_precision"]["value"]

    def paint(axes: Axes) -> None:
        axes.axhline(share, color=GREY, linestyle=":", linewidth=1.2)
        axes.plot(*np.array(entry["curves"]["precision_recall"]).T, color=BLUE, linewidth=2, clip_on=False)
        axes.set(xlabel="Sensitivity", ylabel="Positive predictive value", xlim=(0, 1), ylim=(0, 1.005))
        axes.text(0.03, 0.08, f"average precision {average:.3f}", transform=axes.transAxes, size=12)

    alt = f"Precision-recall curve; the average precision is {average:.3f}"
    return chart(paint, alt=alt, height=3.3)


def _histogram(entry: Entry) -> Markup:
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    threshold = entry["metrics"]["threshold"]

    def paint(axes: Axes) -> None:
        for (name, colour, line), label in zip((("without", BLUE, "-"), ("with", VERMILION, "--")), SIDES, strict=True):
            counts = np.array(entry["curves"]["histogram"][name])
            shares = 100 * counts / max(1, counts.sum())
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=line, label=label)
        axes.axvline(threshold, color=INK, linewidth=1.2, label=f"threshold {threshold:.3g}")
        axes.set(xlabel="Probability of pneumonia", ylabel="Films of the class (%)", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return chart(paint, alt="Histogram of the probabilities of films with and without pneumonia", height=3.2)


def _calibration(entry: Entry) -> Markup:
    groups = entry["curves"]["calibration"]
    predicted = [group["probability"] for group in groups]
    value, low, high = (np.array([group["diseased"][name] for group in groups]) for name in ("value", "low", "high"))

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        axes.errorbar(
            predicted,
            value,
            yerr=np.maximum([value - low, high - value], 0),
            color=BLUE,
            marker="o",
            markersize=5,
            linewidth=1.2,
            clip_on=False,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Probability of pneumonia (mean of the group)")
        axes.set_ylabel("Share of films with pneumonia")

    return chart(paint, alt="Calibration: share of films with pneumonia against predicted probability", height=3.2)
