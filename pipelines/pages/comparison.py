"""The page of several models evaluated on the same films: which is best, and whether by more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes

from models.statistics.comparison import delong_test, holm, mcnemar
from models.statistics.metrics import Labels, Scores
from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below, show_corner
from pipelines.pages.evaluation_charts import confusion_chart
from pipelines.pages.frame import render

LINES: Final = (("-", BLUE), ("--", VERMILION), (":", INK), ("-.", "#009E73"), ((0, (5, 1, 1, 1)), "#CC79A7"))
"""Line style and colour of each model's curve; they repeat with more models."""
LONG: Final = 18
"""Length of a name above which the legend has one column."""
FIGURES: Final = ("accuracy", "sensitivity", "specificity")


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """The evaluation of one model on the films."""

    name: str
    model_id: str
    entry: Mapping[str, Any]
    """As `models.statistics.evaluation.evaluation_entry` makes it."""
    probability: Scores
    """Calibrated, of disease [N]."""
    called: Any
    """Whether each film is called positive at the model's own default operating point, bool [N]."""


def comparison_page(
    labels: Labels, patients: npt.NDArray[np.str_], models: Sequence[EvaluatedModel], *, split: str, dataset: str
) -> str:
    """HTML of models evaluated on the same films, best AUC first.

    `labels` and `patients` have one entry per film. Raises `InputError` for too few films.
    """
    ranked = sorted(models, key=lambda model: -float(model.entry["metrics"]["auc"]["value"]))
    best = ranked[0]
    delong = [delong_test(labels, best.probability, model.probability, patients) for model in ranked[1:]]
    calls = [mcnemar(labels, best.called, model.called, patients) for model in ranked[1:]]
    by_auc, by_calls = holm([test.p_value for test in delong]), holm([test.p_value for test in calls])
    rows = [
        {
            "model": model,
            "at": model.entry["metrics"],
            "delong": None if place == 0 else delong[place - 1].to_json() | {"p_value": by_auc[place - 1]},
            "mcnemar": None if place == 0 else calls[place - 1].to_json() | {"p_value": by_calls[place - 1]},
        }
        for place, model in enumerate(ranked)
    ]
    return render(
        "comparison.html",
        made=datetime.now(UTC),
        title=f"{len(models)} models on {split}",
        rows=rows,
        best=best,
        split=split,
        dataset=dataset,
        roc=_roc(ranked),
        bars=_bars(ranked),
        confusions=[(model.name, confusion_chart(model.entry["metrics"])) for model in ranked],
    )


def _roc(models: Sequence[EvaluatedModel]) -> Markup:
    columns = 1 if max(len(model.name) for model in models) > LONG else 2
    rows = -(-len(models) // columns)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
        for number, model in enumerate(models):
            style, colour = LINES[number % len(LINES)]
            label = f"{model.name} {model.entry['metrics']['auc']['value']:.3f}"
            curve = np.array(model.entry["curves"]["roc"]).T
            axes.plot(*curve, color=colour, linestyle=style, linewidth=1.8, label=label)
        show_corner(axes, models[0].entry["metrics"]["auc"]["value"])
        legend_below(axes, columns=columns)

    return chart(paint, alt="ROC curves of all models, with the areas under them", height=3.2 + 0.2 * rows)


def _bars(models: Sequence[EvaluatedModel]) -> Markup:
    height = 0.8 / len(FIGURES)
    colours = (BLUE, VERMILION, GREY)

    def paint(axes: Axes) -> None:
        places = np.arange(len(models))
        for number, figure in enumerate(FIGURES):
            metrics = [model.entry["metrics"][figure] for model in models]
            values = np.array([at["value"] for at in metrics])
            reach = np.array([[at["value"] - at["low"], at["high"] - at["value"]] for at in metrics]).T
            at_height = places + (number - 1) * height
            axes.barh(at_height, values, height * 0.9, color=colours[number], alpha=0.75, label=figure)
            axes.errorbar(values, at_height, xerr=np.maximum(reach, 0), fmt="none", ecolor=INK, elinewidth=1)
        axes.set_yticks(places, [model.name for model in models])
        axes.set(xlim=(0, 1), ylim=(len(models) - 0.4, -0.6), xlabel="Share of the films")
        axes.grid(visible=False, axis="y")
        legend_below(axes)

    alt = "Accuracy, sensitivity and specificity of each model at its default operating point"
    return chart(paint, alt=alt, height=1.4 + 0.55 * len(models))
