"""The charts of a search: what it reached at what cost, its learning curves, its best trials, what mattered.

All take the trials with a result, best first, and draw what they are ranked by, which `measure` names.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, Paint, chart, legend_below, whole_numbers
from tuning.study.records import TrialRecord, front_of

AUC: Final = "AUC"
DRAWN: Final = 500
"""Trials that are drawn one by one, at most: the best."""
_ROWS: Final = 10
_LINES: Final = ((VERMILION, "-"), (BLUE, "--"), (INK, ":"), (GREY, "-."))
_LOOKS: Final = (("complete", "o", BLUE, "full"), ("pruned", "o", GREY, "none"))


def by_number(ranked: Sequence[TrialRecord], measure: str = AUC) -> Markup:
    """Each trial in the order in which they were suggested, and the best so far."""
    trials = sorted(ranked, key=lambda trial: trial.number)
    places = [trial.number for trial in trials]
    return _progress(trials, places, "Trial, in the order they were suggested", measure, whole=True)


def by_cost(ranked: Sequence[TrialRecord], trials: Sequence[TrialRecord], cores: float, measure: str = AUC) -> Markup:
    """The same by the core time spent on all trials that had ended by then, failed ones included."""
    with_result = {trial.trial_id for trial in ranked}
    costs = [(trial, cost) for trial, cost in with_costs(trials, cores) if trial.trial_id in with_result]
    shown, minutes = [trial for trial, _ in costs], [cost for _, cost in costs]
    if minutes[-1] > 600:
        return _progress(shown, [value / 60 for value in minutes], "Core-hours spent", measure)
    return _progress(shown, minutes, "Core-minutes spent", measure)


def _progress(
    trials: Sequence[TrialRecord], places: Sequence[float], label: str, measure: str, *, whole: bool = False
) -> Markup:
    """Each trial's value and the best so far, trials in the order of their places on the x axis."""
    values = [trial.result for trial in trials]
    best = list(accumulate(values, max))
    floor = floor_of(values)

    def paint(axes: Axes) -> None:
        points = list(zip(places, values, trials, strict=True))
        for status, marker, colour, fill in _LOOKS:
            _points(
                axes,
                [(x, y) for x, y, trial in points if trial.status == status and not _baseline(trial) and y >= floor],
                marker,
                color=colour,
                fillstyle=fill,
                markersize=4.5 if len(trials) > 100 else 5.5,
                label=status,
            )
        _points(
            axes,
            [(x, y) for x, y, trial in points if _baseline(trial) and y >= floor],
            "D",
            color=INK,
            markersize=6,
            label="baseline",
        )
        _points(axes, [(x, floor) for x, y, _ in points if y < floor], "v", color=GREY, markersize=5, clip_on=False)
        axes.step(places, [max(value, floor) for value in best], where="post", color=VERMILION, label="best so far")
        value_axis(axes, floor, max(values), measure)
        axes.set_xlabel(label)
        if whole:
            whole_numbers(axes.xaxis)
        legend_below(axes, 4)

    return chart(paint, alt=f"{measure} of each trial; the best so far ends at {max(values):.4f}", height=3)


def with_costs(trials: Sequence[TrialRecord], cores: float) -> list[tuple[TrialRecord, float]]:
    """Trials in the order in which they ended, each with the core-minutes spent on all until then."""
    ordered = sorted(trials, key=lambda trial: (trial.finished_at, trial.number))
    return list(zip(ordered, accumulate(trial.seconds * cores / 60 for trial in ordered), strict=True))


def beside(searches: Mapping[str, Sequence[tuple[float, float]]], measure: str = AUC) -> Markup:
    """The progress of several searches on the same films, each given by its trials as (core-minutes spent, value)."""
    alt = f"The best {measure} so far of each search by core-minutes spent"
    return chart(paint_beside(searches, measure), alt=alt, height=3.2)


def paint_beside(searches: Mapping[str, Sequence[tuple[float, float]]], measure: str = AUC) -> Paint:
    """What `beside` draws: for each search, four at most, the best so far until its last trial ended."""
    floor = floor_of([value for trials in searches.values() for _, value in trials])
    first = min(minutes for trials in searches.values() for minutes, value in trials if value >= floor)

    def paint(axes: Axes) -> None:
        tops = []
        for (label, trials), (colour, line) in zip(searches.items(), _LINES, strict=False):
            minutes, values = zip(*sorted(trials), strict=True)
            best = list(accumulate(values, max))
            tops.append(best[-1])
            seen = [(at, value) for at, value in zip(minutes, values, strict=True) if value >= floor]
            _points(axes, seen, ".", color=colour, markersize=4, alpha=0.35)
            axes.step(minutes, best, line, where="post", color=colour, label=f"{label}: {best[-1]:.4f}")
            axes.plot(minutes[-1], best[-1], "o", color=colour, markersize=5)
        value_axis(axes, floor, max(tops), measure)
        axes.set_xscale("log")
        axes.set_xlim(left=0.8 * first)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Core-minutes spent")
        legend_below(axes, 1)

    return paint


def curves(ranked: Sequence[TrialRecord], measure: str = AUC) -> Markup:
    """A line per trial; a cross where one was stopped early."""
    floor = floor_of([trial.result for trial in ranked])
    best, others = ranked[0], [trial for trial in ranked[1:DRAWN] if trial.history]
    # complete trials first, so that neither stopped ones nor baselines are hidden under them
    others.sort(key=lambda trial: (_baseline(trial), trial.status == "pruned"))
    faint, width = (0.4, 1.2) if len(others) <= 40 else (0.2, 1.0) if len(others) <= 100 else (0.1, 0.8)

    def paint(axes: Axes) -> None:
        for trial in others:
            epochs, values = _curve(trial)
            if _baseline(trial):
                axes.plot(epochs, values, ":", marker="D", markersize=3, color=INK, linewidth=1.4)
                continue
            complete = trial.status == "complete"
            look: dict[str, Any] = {"color": BLUE, "alpha": 2 * faint} if complete else {"color": GREY, "alpha": faint}
            axes.plot(epochs, values, linewidth=width, marker="." if len(epochs) < 2 else None, **look)
            if not complete:
                axes.plot(epochs[-1:], values[-1:], "x", color=GREY, markersize=5, alpha=min(1.0, 2 * faint))
        if best.history:
            axes.plot(*_curve(best), "o-", color=VERMILION, markersize=4, label=f"best (trial {best.number})")
        # legible in the legend, however faint the lines are
        if any(trial.status == "complete" and not _baseline(trial) for trial in others):
            axes.plot([], [], color=BLUE, label="complete")
        if any(trial.status == "pruned" for trial in others):
            axes.plot([], [], "x-", color=GREY, markersize=5, label="stopped early")
        if any(_baseline(trial) for trial in others):
            axes.plot([], [], "D:", color=INK, markersize=3, label="baseline")
        value_axis(axes, floor, best.result, measure)
        axes.set_xlabel("Epoch")
        whole_numbers(axes.xaxis)
        legend_below(axes, 2)

    return chart(paint, alt=f"{measure} on the validation films by epoch, a line per trial", height=3.2)


def leaders(ranked: Sequence[TrialRecord], judged: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """The best trials and the best baseline, each with the interval of its AUC; None where none is known."""
    known = [trial for trial in ranked if trial.trial_id in judged]
    rows = known[:_ROWS]
    if not any(_baseline(trial) for trial in rows):
        rows += [trial for trial in known[_ROWS:] if _baseline(trial)][:1]
    if not rows:
        return None
    floor = floor_of([judged[trial.trial_id]["auc"]["low"] for trial in rows])

    def paint(axes: Axes) -> None:
        for place, trial in enumerate(rows):
            at = judged[trial.trial_id]["auc"]
            colour = VERMILION if place == 0 else INK if _baseline(trial) else BLUE
            marker = "<" if at["value"] < floor else "D" if _baseline(trial) else "o"
            axes.plot([at["low"], at["high"]], [place, place], color=colour, linewidth=1.6)
            axes.plot(max(at["value"], floor), place, marker, color=colour, markersize=6, clip_on=False)
        best = judged[rows[0].trial_id]["auc"]["value"]
        axes.axvline(best, color=VERMILION, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [_name(trial) for trial in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=floor)
        axes.set_xlabel("AUC, validation films, with 95 % interval")
        axes.grid(visible=False, axis="y")

    return chart(paint, alt="AUC of the best trials with their intervals", height=0.9 + 0.26 * len(rows))


def importance(shares_by_method: Mapping[str, Any]) -> Markup:
    """Both shares of each parameter, the most important first."""
    methods = (
        (shares_by_method["fanova"], "o", BLUE, "fANOVA"),
        (shares_by_method["ped_anova"], "D", VERMILION, "PED-ANOVA"),
    )
    names = {name for shares, *_ in methods for name in shares}
    shown = sorted(names, key=lambda name: (-sum(shares.get(name, 0) for shares, *_ in methods), name))[:_ROWS]

    def paint(axes: Axes) -> None:
        for shares, marker, colour, label in methods:
            percents = [(100 * shares[name], place) for place, name in enumerate(shown) if name in shares]
            for value, place in percents:
                axes.plot([0, value], [place, place], color=colour, linewidth=1.2, alpha=0.5)
            _points(axes, percents, marker, color=colour, markersize=6, clip_on=False, label=label)
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("Share (%)")
        axes.grid(visible=False, axis="y")
        legend_below(axes)

    return chart(paint, alt=f"Importance of parameters; first {shown[0]}", height=1.15 + 0.27 * len(shown))


def pareto(ranked: Sequence[TrialRecord], measure: str = AUC) -> Markup | None:
    """Value against milliseconds per film, the Pareto front as a line; None where latency was not measured."""
    timed = [(trial, trial.latency_ms) for trial in ranked if trial.latency_ms is not None]
    if len(timed) < 2:
        return None
    front = sorted(front_of(ranked), key=lambda trial: trial.latency_ms or 0.0)
    floor = floor_of([trial.result for trial, _ in timed])
    latencies = [latency for _, latency in timed]

    def paint(axes: Axes) -> None:
        shown = [(trial, latency) for trial, latency in timed[:DRAWN] if trial.result >= floor]
        searched = [(latency, trial.result) for trial, latency in shown if not _baseline(trial)]
        baselines = [(latency, trial.result) for trial, latency in shown if _baseline(trial)]
        _points(axes, searched, "o", color=GREY, markersize=4)
        _points(axes, baselines, "D", color=INK, markersize=6, label="baseline")
        x, y = zip(*[(trial.latency_ms, max(trial.result, floor)) for trial in front], strict=True)
        axes.step(x, y, where="post", color=VERMILION, linewidth=1.2)
        axes.plot(x, y, "o", color=VERMILION, markersize=6, label="on the front")
        if max(latencies) > 10 * min(latencies) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        value_axis(axes, floor, ranked[0].result, measure)
        axes.set_xlabel("Milliseconds per film")
        legend_below(axes)

    return chart(paint, alt=f"{measure} against milliseconds per film; {len(front)} trials are on the Pareto front")


def value_axis(axes: Axes, floor: float, top: float, measure: str = AUC) -> None:
    """From the floor to a little above the best; a line marks the perfect value, if it is in sight."""
    axes.set_ylim(floor, top + 0.06 * (top - floor))
    axes.set_ylabel(f"{measure}, validation films")
    if top + 0.06 * (top - floor) >= 1:
        axes.axhline(1, color=INK, linewidth=0.8)


def floor_of(values: Sequence[float]) -> float:
    """Where the axis of values begins: a few hopeless trials must not press all others into one line."""
    best, middle = max(values), median(values)
    return max(min(values), best - max(4 * (best - middle), 0.01)) - 0.002


def _name(trial: TrialRecord) -> str:
    family = trial.model if len(trial.model) < 20 else trial.model[:18] + "…"
    return f"{trial.number} {family}"


def _baseline(trial: TrialRecord) -> bool:
    return trial.kind == "baseline"


def _curve(trial: TrialRecord) -> tuple[list[int], list[float]]:
    """Epochs, and the value of each."""
    values = [epoch["val_auc"] if epoch.get("objective") is None else epoch["objective"] for epoch in trial.history]
    return [epoch["epoch"] for epoch in trial.history], values


def _points(axes: Axes, points: Sequence[tuple[Any, Any]], marker: str, **look: Any) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, linestyle="none", **look)
