"""The page of `rayscan crossvalidate`: a recipe on held-out patients and on perturbed films."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes

from models.statistics.curves import roc_curve
from models.statistics.metrics import Labels, Scores
from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below, show_corner
from pipelines.pages.frame import render

DEALT: Final[Mapping[str, str]] = {
    "random": "folds of patients at random",
    "blocks": "blocks of the archive's own order",
    "site": "folds of whole sites",
}


def crossvalidation_page(
    result: Mapping[str, Any], *, labels: Labels, probability: Scores, fold: npt.NDArray[np.int64]
) -> str:
    """HTML of a cross-validation: the figures of each fold, their spread, ROC curves, perturbed films.

    `result` is a `tuning.recipes.crossvalidate.CrossValidation` as JSON values. For each film [N], `labels` is the
    class index, `fold` the fold it was held out in, and `probability` the calibrated probability of disease from the
    model of that fold.
    """
    return render(
        "crossvalidation.html",
        made=datetime.now(UTC),
        title=f"Cross-validation: {result['model']}",
        found=result,
        point=result["operating_point"],
        dealt=DEALT[result["folds_by"]],
        roc=_roc(result, labels, probability, fold),
        shift_chart=_shift(result),
    )


def _roc(result: Mapping[str, Any], labels: Labels, probability: Scores, fold: npt.NDArray[np.int64]) -> Markup:
    value = result["pooled"][result["operating_point"]]["auc"]["value"]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        for number in np.unique(fold):
            own = fold == number
            label = "one fold" if number == fold.min() else None
            axes.plot(
                *roc_curve(labels[own], probability[own]).T,
                color=GREY,
                linewidth=1,
                alpha=0.9,
                linestyle="--",
                label=label,
            )
        axes.plot(*roc_curve(labels, probability).T, color=BLUE, linewidth=2, label="all films")
        show_corner(axes, value)
        axes.text(0.97, 0.08, f"AUC {value:.3f}", ha="right", transform=axes.transAxes, size=12)
        legend_below(axes)

    return chart(
        paint, alt=f"ROC curve of each fold and of all films; the area under the last is {value:.3f}", height=3.3
    )


def _shift(result: Mapping[str, Any]) -> Markup:
    """Mean over folds and the worst fold, for unperturbed films and for each perturbation."""
    over = result["over_folds"][result["operating_point"]]
    rows = [("unperturbed", over), *result["under_shift"]["changes"].items()]
    names = [name for name, _ in rows]

    def paint(axes: Axes) -> None:
        places = np.arange(len(rows))
        for offset, figure, colour, label in (
            (-0.2, "auc", BLUE, "AUC"),
            (0.2, "balanced_accuracy", VERMILION, "balanced accuracy"),
        ):
            mean = [values[figure]["mean"] for _, values in rows]
            worst = [values[figure]["worst"] for _, values in rows]
            axes.barh(places + offset, mean, 0.36, color=colour, alpha=0.7, label=label)
            axes.plot(worst, places + offset, "|", color=INK, markersize=9, markeredgewidth=2,
                      label="worst fold" if offset > 0 else None)  # fmt: skip
        low = min(values[figure]["worst"] for _, values in rows for figure in ("auc", "balanced_accuracy"))
        axes.set_yticks(places, names)
        axes.set(
            xlim=(max(0.0, np.floor(10 * low - 0.5) / 10), 1), ylim=(len(rows) - 0.4, -0.6), xlabel="Mean over folds"
        )
        axes.grid(visible=False, axis="y")
        legend_below(axes)

    return chart(
        paint, alt="AUC and balanced accuracy on unperturbed and perturbed films, mean and worst fold", height=4.2
    )
