"""Where in its space a search found good models: parallel coordinates, slices, and a grid's table.

All take the trials with a result, best first; baselines are of no space and left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, chart, legend_below
from pipelines.pages.frame import plain
from tuning.study.pages.search_charts import DRAWN, auc_axis, floor_of
from tuning.study.pages.trials import Trial
from tuning.study.scale import is_continuous, is_logarithmic

LEAST: Final = 3
"""Trials of a family, at least, for parallel coordinates."""
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
        """Place and text of what is written along it."""
        if self.choices:
            return [(self.place(choice), _short(choice)) for choice in self.choices]
        middle = math.sqrt(self.low * self.high) if self.logarithmic else (self.low + self.high) / 2
        return [(place, _short(value)) for place, value in ((0.0, self.low), (0.5, middle), (1.0, self.high))]


def varying(trials: Sequence[Trial], mattered: Mapping[str, float]) -> list[str]:
    """Parameters of which these trials have several values, those that mattered most first, in the order given then."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    several = [name for name in names if len({str(t.parameters[name]) for t in trials if name in t.parameters}) > 1]
    return sorted(several, key=lambda name: -mattered.get(name, 0))


def parallel(ranked: Sequence[Trial], mattered: Mapping[str, float]) -> list[tuple[str, Markup]]:
    """Of each of the best families its name and parallel coordinates, a line per trial from row to row."""
    searched = [trial for trial in ranked if not trial.baseline]
    found = []
    for family in dict.fromkeys(trial.family for trial in searched):
        members = [trial for trial in searched if trial.family == family][:DRAWN]
        names = varying(members, mattered)[:PARAMETERS]
        if len(members) >= LEAST and names:
            found.append((family, _parallel(members, names)))
    return found[:FAMILIES]


def _parallel(members: Sequence[Trial], names: Sequence[str]) -> Markup:
    scales = {name: _Scale([t.parameters[name] for t in members if name in t.parameters]) for name in names}
    floor, best = floor_of([trial.value for trial in members]), members[0].value
    foremost = max(1, len(members) // 10)

    def line(trial: Trial) -> list[float]:
        values = [
            scales[name].place(trial.parameters[name]) if name in trial.parameters else math.nan for name in names
        ]
        return [*values, max(0.0, (trial.value - floor) / (best - floor))]

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
        axes.set_yticks(rows, [*names, "AUC"])
        axes.tick_params(length=0)
        axes.set(xlim=(0, 1), ylim=(len(names) + 0.15, -0.5), xticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    alt = f"Parallel coordinates of {len(members)} trials over {', '.join(names)} and AUC"
    return chart(paint, alt=alt, height=0.5 + 0.47 * (len(names) + 1))


def slices(ranked: Sequence[Trial], mattered: Mapping[str, float]) -> list[Markup]:
    """AUC against each of the parameters that vary, those that mattered most first."""
    searched = [trial for trial in ranked if not trial.baseline][:DRAWN]
    if len(searched) < LEAST:
        return []
    return [_slice(searched, name) for name in varying(searched, mattered)[:PARAMETERS]]


def _slice(searched: Sequence[Trial], name: str) -> Markup:
    trials = [trial for trial in searched if name in trial.parameters]
    scale = _Scale([trial.parameters[name] for trial in trials])
    floor = floor_of([trial.value for trial in searched])
    families = list(dict.fromkeys(trial.family for trial in searched))
    looks = dict(zip(families, [*_LOOKS, *[_LOOKS[-1]] * len(families)], strict=False))

    def place(trial: Trial) -> float:
        if not scale.choices:
            return float(trial.parameters[name])
        # spread a little, by the golden ratio, so that trials of one choice do not hide each other
        return scale.choices.index(trial.parameters[name]) + 0.5 * ((trial.number * 0.618) % 1 - 0.5)

    def paint(axes: Axes) -> None:
        for family, (colour, marker) in looks.items():
            own = [trial for trial in trials if trial.family == family]
            above = [trial for trial in own if trial.value >= floor]
            if above:
                at = [place(trial) for trial in above], [trial.value for trial in above]
                size = 3.5 if len(trials) > 100 else 5
                axes.plot(*at, marker, color=colour, alpha=0.7, markersize=size, label=family)
            below = [place(trial) for trial in own if trial.value < floor]
            if below:  # nothing at all, unclipped, would push the legend away
                axes.plot(below, [floor] * len(below), "v", color=GREY, markersize=4, clip_on=False)
        if scale.choices:
            axes.set_xticks(range(len(scale.choices)), [_short(choice) for choice in scale.choices])
            axes.set_xlim(-0.5, len(scale.choices) - 0.5)
        elif scale.logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(float(value))))
            axes.xaxis.set_minor_locator(NullLocator())
        auc_axis(axes, floor, searched[0].value)
        axes.set_ylabel("AUC")
        axes.set_xlabel(name)
        if len(families) > 1:
            legend_below(axes)

    return chart(paint, alt=f"AUC by {name}, a mark per trial", height=2.4)


def grid_tables(ranked: Sequence[Trial]) -> list[dict[str, Any]]:
    """Of each family of a grid search the AUC of every combination: `family`, `columns`, `rows` of `name` and `cells`.

    A cell is None, or `auc` and its `shade` from 0.06 to 0.5, of the colour it is to have.
    """
    searched = [trial for trial in ranked if not trial.baseline]
    found = []
    for family in dict.fromkeys(trial.family for trial in searched):
        members = [trial for trial in searched if trial.family == family]
        names = varying(members, {})
        down, across = names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]
        rows, columns = (_combinations(members, side) for side in (down, across))
        # the earlier ones are better: of trials with the same parameters the best is shown
        at = {(_of(trial, down), _of(trial, across)): trial.value for trial in reversed(members)}
        floor, best = floor_of([trial.value for trial in members]), members[0].value
        cells = [
            [
                (row, column) in at
                and {
                    "auc": at[row, column],
                    "shade": round(0.06 + 0.44 * max(0.0, (at[row, column] - floor) / (best - floor)), 2),
                }
                for column in columns
            ]
            for row in rows
        ]
        found.append(
            {
                "family": family,
                "columns": [_told(across, column) for column in columns],
                "rows": [{"name": _told(down, row), "cells": of_row} for row, of_row in zip(rows, cells, strict=True)],
            }
        )
    return found


def _combinations(members: Sequence[Trial], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return sorted({_of(trial, names) for trial in members}, key=lambda values: [_order(value) for value in values])


def _of(trial: Trial, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(trial.parameters.get(name) for name in names)


def _told(names: Sequence[str], values: Sequence[Any]) -> str:
    return " · ".join(f"{name} {_short(v)}" for name, v in zip(names, values, strict=True) if v is not None) or "AUC"


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then what is none by name; a parameter that is not there comes last."""
    if value is None:
        return (2, 0, "")
    return (0, value, "") if type(value) in {int, float} else (1, 0, str(value))


def _side(place: float) -> str:
    return "left" if place <= 0 else "right" if place >= 1 else "center"


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else plain(value)
    return text if len(text) <= 16 else text[:15] + "…"
