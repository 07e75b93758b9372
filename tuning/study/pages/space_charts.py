"""Where in its space a search found good models: parallel coordinates, slices, and a grid's table.

All take the trials with a result, best first, and draw what they are ranked by, which `measure` names; baselines
belong to no space and are left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below
from pipelines.pages.frame import plain
from tuning.study.pages.search_charts import AUC, DRAWN, floor_of, value_axis
from tuning.study.records import TrialRecord
from tuning.study.scale import is_continuous, is_logarithmic

LEAST: Final = 3
"""Fewest trials of a family for parallel coordinates."""
FAMILIES: Final = 3
PARAMETERS: Final = 8
_LOOKS: Final = ((BLUE, "o"), (VERMILION, "^"), (GREY, "s"))


class _Scale:
    """Values of one parameter as places from 0 to 1."""

    def __init__(self, values: Sequence[Any]) -> None:
        continuous = is_continuous(values)
        self.choices = [] if continuous else sorted(set(values), key=_order)
        self.low: float = min(values) if continuous else 0.0
        self.high: float = max(values) if continuous else 1.0
        self.logarithmic = continuous and is_logarithmic(values)

    def place(self, value: Any) -> float:
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high, at = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return float((at - low) / (high - low))

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Place and text of the labels along it."""
        if self.choices:
            return [(self.place(choice), _short(choice)) for choice in self.choices]
        middle = math.sqrt(self.low * self.high) if self.logarithmic else (self.low + self.high) / 2
        return [(place, _short(value)) for place, value in ((0.0, self.low), (0.5, middle), (1.0, self.high))]


def varying(trials: Sequence[TrialRecord], mattered: Mapping[str, float]) -> list[str]:
    """Parameters that vary among these trials: the most important first, else in the order in which they occur."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters if name != "family"))
    several = [name for name in names if len({str(t.parameters[name]) for t in trials if name in t.parameters}) > 1]
    return sorted(several, key=lambda name: -mattered.get(name, 0))


def parallel(
    ranked: Sequence[TrialRecord], mattered: Mapping[str, float], measure: str = AUC
) -> list[tuple[str, Markup]]:
    """Name and parallel coordinates of each of the best families, a line per trial from row to row."""
    searched = [trial for trial in ranked if trial.kind != "baseline"]
    charts = []
    for family in dict.fromkeys(trial.model for trial in searched):
        members = [trial for trial in searched if trial.model == family][:DRAWN]
        names = varying(members, mattered)[:PARAMETERS]
        if len(members) >= LEAST and names:
            charts.append((family, _parallel(members, names, measure)))
    return charts[:FAMILIES]


def _parallel(members: Sequence[TrialRecord], names: Sequence[str], measure: str) -> Markup:
    scales = {name: _Scale([t.parameters[name] for t in members if name in t.parameters]) for name in names}
    floor, best = floor_of([trial.result for trial in members]), members[0].result
    foremost = max(1, len(members) // 10)

    def line(trial: TrialRecord) -> list[float]:
        values = [
            scales[name].place(trial.parameters[name]) if name in trial.parameters else math.nan for name in names
        ]
        return [*values, max(0.0, (trial.result - floor) / (best - floor))]

    def paint(axes: Axes) -> None:
        rows = range(len(names) + 1)
        faint = 0.15 if len(members) > 100 else 0.35
        for place, trial in reversed(list(enumerate(members))):
            look: dict[str, Any] = {"color": GREY, "alpha": faint, "linewidth": 1}
            if place == 0:
                look = {"color": VERMILION, "linewidth": 2.2, "zorder": 3, "marker": "o", "markersize": 4}
            elif place < foremost:
                look = {"color": BLUE, "linewidth": 1.3, "zorder": 2.5}
            axes.plot(line(trial), rows, clip_on=False, **look)
        for row in rows:
            axes.axhline(row, color=INK, linewidth=0.8)
        marks = [*(scales[name].marks for name in names), [(0.0, f"{floor:.3f}"), (1.0, f"{best:.3f}")]]
        for row, of_row in zip(rows, marks, strict=True):
            for at, text in of_row:
                axes.text(at, row - 0.08, text, size=8, ha=_side(at), va="bottom", zorder=4)
        axes.set_yticks(rows, [*names, measure])
        axes.tick_params(length=0)
        axes.set(xlim=(0, 1), ylim=(len(names) + 0.15, -0.5), xticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    alt = f"Parallel coordinates of {len(members)} trials over {', '.join(names)} and {measure}"
    return chart(paint, alt=alt, height=0.5 + 0.47 * (len(names) + 1))


def slices(ranked: Sequence[TrialRecord], mattered: Mapping[str, float], measure: str = AUC) -> list[Markup]:
    """The value against each of the parameters that vary, the most important first."""
    searched = [trial for trial in ranked if trial.kind != "baseline"][:DRAWN]
    if len(searched) < LEAST:
        return []
    return [_slice(searched, name, measure) for name in varying(searched, mattered)[:PARAMETERS]]


def _slice(searched: Sequence[TrialRecord], name: str, measure: str) -> Markup:
    trials = [trial for trial in searched if name in trial.parameters]
    scale = _Scale([trial.parameters[name] for trial in trials])
    floor = floor_of([trial.result for trial in searched])
    families = list(dict.fromkeys(trial.model for trial in searched))
    looks = dict(zip(families, [*_LOOKS, *[_LOOKS[-1]] * len(families)], strict=False))

    def place(trial: TrialRecord) -> float:
        if not scale.choices:
            return float(trial.parameters[name])
        # spread a little, by the golden ratio, so that trials of one choice do not hide each other
        return scale.choices.index(trial.parameters[name]) + 0.5 * ((trial.number * 0.618) % 1 - 0.5)

    def paint(axes: Axes) -> None:
        for family, (colour, marker) in looks.items():
            own = [trial for trial in trials if trial.model == family]
            above = [trial for trial in own if trial.result >= floor]
            if above:
                at = [place(trial) for trial in above], [trial.result for trial in above]
                size = 3.5 if len(trials) > 100 else 5
                axes.plot(*at, marker, color=colour, alpha=0.7, markersize=size, label=family)
            below = [place(trial) for trial in own if trial.result < floor]
            if below:  # an empty plot, unclipped, would displace the legend
                axes.plot(below, [floor] * len(below), "v", color=GREY, markersize=4, clip_on=False)
        if scale.choices:
            axes.set_xticks(range(len(scale.choices)), [_short(choice) for choice in scale.choices])
            axes.set_xlim(-0.5, len(scale.choices) - 0.5)
        elif scale.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(float(value))))
            axes.xaxis.set_minor_locator(NullLocator())
        value_axis(axes, floor, searched[0].result)
        axes.set_ylabel(measure)
        axes.set_xlabel(name)
        if len(families) > 1:
            legend_below(axes)

    return chart(paint, alt=f"{measure} by {name}, a mark per trial", height=2.4)


def grid_tables(ranked: Sequence[TrialRecord], measure: str = AUC) -> list[dict[str, Any]]:
    """For each family of a grid search, every combination's value: `family`, `columns`, `rows` of `name` and `cells`.

    A cell is None, or `value` and the `shade` of its colour, from 0.06 to 0.5.
    """
    searched = [trial for trial in ranked if trial.kind != "baseline"]
    tables = []
    for family in dict.fromkeys(trial.model for trial in searched):
        members = [trial for trial in searched if trial.model == family]
        names = varying(members, {})
        down, across = names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]
        rows, columns = (_combinations(members, side) for side in (down, across))
        # the earlier ones are better: of trials with the same parameters the best is shown
        at = {(_of(trial, down), _of(trial, across)): trial.result for trial in reversed(members)}
        floor, best = floor_of([trial.result for trial in members]), members[0].result
        cells = [
            [
                (row, column) in at
                and {
                    "value": at[row, column],
                    "shade": round(0.06 + 0.44 * max(0.0, (at[row, column] - floor) / (best - floor)), 2),
                }
                for column in columns
            ]
            for row in rows
        ]
        tables.append(
            {
                "family": family,
                "columns": [_heading(across, column, measure) for column in columns],
                "rows": [
                    {"name": _heading(down, row, measure), "cells": of_row}
                    for row, of_row in zip(rows, cells, strict=True)
                ],
            }
        )
    return tables


def _combinations(members: Sequence[TrialRecord], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return sorted({_of(trial, names) for trial in members}, key=lambda values: [_order(value) for value in values])


def _of(trial: TrialRecord, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(trial.parameters.get(name) for name in names)


def _heading(names: Sequence[str], values: Sequence[Any], measure: str) -> str:
    parts = [f"{name} {_short(value)}" for name, value in zip(names, values, strict=True) if value is not None]
    return " · ".join(parts) or measure


def _order(value: Any) -> tuple[int, float, str]:
    """A sort key: numbers by size, then other values by name, and last a parameter that is absent."""
    if value is None:
        return (2, 0, "")
    return (0, value, "") if type(value) in {int, float} else (1, 0, str(value))


def _side(place: float) -> str:
    return "left" if place <= 0 else "right" if place >= 1 else "center"


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else plain(value)
    return text if len(text) <= 16 else text[:15] + "…"
