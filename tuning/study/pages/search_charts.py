"""The charts of a search: how far it came and at what cost, its learning curves, its best trials, what mattered.

All take the trials with a result, best first.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import Any, Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipelines.pages.charts import BLUE, GREY, INK, VERMILION, Paint, chart, legend_below, whole_numbers
from tuning.study.pages.trials import Trial

DRAWN: Final = 500
"""Trials that are drawn one by one at most, the best of them."""
_ROWS: Final = 10
_LINES: Final = ((VERMILION, "-"), (BLUE, "--"), (INK, ":"), (GREY, "-."))
_LOOKS: Final = (("complete", "o", BLUE, "full"), ("pruned", "o", GREY, "none"))


def by_number(ranked: Sequence[Trial]) -> Markup:
    """Each trial in the order in which they were suggested, and the best so far."""
    trials = sorted(ranked, key=lambda trial: trial.number)
    return _progress(trials, [trial.number for trial in trials], "Trial, in the order they were suggested", whole=True)


def by_cost(ranked: Sequence[Trial], trials: Sequence[Trial], cores: float) -> Markup:
    """The same by the cores' time that all trials ended until then had taken, failed ones included."""
    found = [(trial, cost) for trial, cost in with_costs(trials, cores) if trial in ranked]
    shown, minutes = [trial for trial, _ in found], [cost for _, cost in found]
    if minutes[-1] > 600:
        return _progress(shown, [value / 60 for value in minutes], "Core-hours spent")
    return _progress(shown, minutes, "Core-minutes spent")


def _progress(trials: Sequence[Trial], places: Sequence[float], label: str, *, whole: bool = False) -> Markup:
    """Each trial's AUC and the best so far, trials in the order of their places on the x axis."""
    aucs = [trial.value for trial in trials]
    best = list(accumulate(aucs, max))
    floor = floor_of(aucs)

    def paint(axes: Axes) -> None:
        points = list(zip(places, aucs, trials, strict=True))
        for status, marker, colour, fill in _LOOKS:
            _points(
                axes,
                [(x, y) for x, y, trial in points if trial.status == status and not trial.baseline and y >= floor],
                marker,
                color=colour,
                fillstyle=fill,
                markersize=4.5 if len(trials) > 100 else 5.5,
                label=status,
            )
        _points(
            axes,
            [(x, y) for x, y, trial in points if trial.baseline and y >= floor],
            "D",
            color=INK,
            markersize=6,
            label="baseline",
        )
        _points(axes, [(x, floor) for x, y, _ in points if y < floor], "v", color=GREY, markersize=5, clip_on=False)
        axes.step(places, [max(value, floor) for value in best], where="post", color=VERMILION, label="best so far")
        auc_axis(axes, floor, max(aucs))
        axes.set_xlabel(label)
        if whole:
            whole_numbers(axes.xaxis)
        legend_below(axes, 4)

    return chart(paint, alt=f"AUC of each trial; the best so far ends at {max(aucs):.4f}", height=3)


def with_costs(trials: Sequence[Trial], cores: float) -> list[tuple[Trial, float]]:
    """Trials as they ended, each with the core-minutes that all until then had taken."""
    ordered = sorted(trials, key=lambda trial: (trial.finished_at, trial.number))
    return list(zip(ordered, accumulate(trial.seconds * cores / 60 for trial in ordered), strict=True))


def beside(searches: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """How several searches of the same films came on: of each its ended trials as (core-minutes spent, AUC)."""
    return chart(paint_beside(searches), alt="The best AUC so far of each search by core-minutes spent", height=3.2)


def paint_beside(searches: Mapping[str, Sequence[tuple[float, float]]]) -> Paint:
    """What `beside` draws: of each search, four at most, the best so far until its last trial ended."""
    floor = floor_of([auc for trials in searches.values() for _, auc in trials])
    first = min(minutes for trials in searches.values() for minutes, auc in trials if auc >= floor)

    def paint(axes: Axes) -> None:
        tops = []
        for (label, trials), (colour, line) in zip(searches.items(), _LINES, strict=False):
            minutes, aucs = zip(*sorted(trials), strict=True)
            best = list(accumulate(aucs, max))
            tops.append(best[-1])
            seen = [(at, auc) for at, auc in zip(minutes, aucs, strict=True) if auc >= floor]
            _points(axes, seen, ".", color=colour, markersize=4, alpha=0.35)
            axes.step(minutes, best, line, where="post", color=colour, label=f"{label}: {best[-1]:.4f}")
            axes.plot(minutes[-1], best[-1], "o", color=colour, markersize=5)
        auc_axis(axes, floor, max(tops))
        axes.set_xscale("log")
        axes.set_xlim(left=0.8 * first)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Core-minutes spent")
        legend_below(axes, 1)

    return paint


def curves(ranked: Sequence[Trial]) -> Markup:
    """A line per trial; a cross where one was stopped early."""
    floor = floor_of([trial.value for trial in ranked])
    best, others = ranked[0], [trial for trial in ranked[1:DRAWN] if trial.curve]
    # the many first, so that neither those that were stopped nor the baselines are hidden under them
    others.sort(key=lambda trial: (trial.baseline, trial.status == "pruned"))
    faint, width = (0.4, 1.2) if len(others) <= 40 else (0.2, 1.0) if len(others) <= 100 else (0.1, 0.8)

    def paint(axes: Axes) -> None:
        for trial in others:
            epochs, aucs = zip(*trial.curve, strict=True)
            if trial.baseline:
                axes.plot(epochs, aucs, ":", marker="D", markersize=3, color=INK, linewidth=1.4)
                continue
            complete = trial.status == "complete"
            look: dict[str, Any] = {"color": BLUE, "alpha": 2 * faint} if complete else {"color": GREY, "alpha": faint}
            axes.plot(epochs, aucs, linewidth=width, marker="." if len(epochs) < 2 else None, **look)
            if not complete:
                axes.plot(epochs[-1:], aucs[-1:], "x", color=GREY, markersize=5, alpha=min(1.0, 2 * faint))
        if best.curve:
            epochs, aucs = zip(*best.curve, strict=True)
            axes.plot(epochs, aucs, "o-", color=VERMILION, markersize=4, label=f"best (trial {best.number})")
        # legible in the legend, however faint the lines are
        if any(trial.status == "complete" and not trial.baseline for trial in others):
            axes.plot([], [], color=BLUE, label="complete")
        if any(trial.status == "pruned" for trial in others):
            axes.plot([], [], "x-", color=GREY, markersize=5, label="stopped early")
        if any(trial.baseline for trial in others):
            axes.plot([], [], "D:", color=INK, markersize=3, label="baseline")
        auc_axis(axes, floor, best.value)
        axes.set_xlabel("Epoch")
        whole_numbers(axes.xaxis)
        legend_below(axes, 2)

    return chart(paint, alt="AUC on the validation films by epoch, a line per trial", height=3.2)


def leaders(ranked: Sequence[Trial], judged: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """The best trials and the best baseline, each with the interval of its AUC; None where none is known."""
    known = [trial for trial in ranked if trial.trial_id in judged]
    rows = known[:_ROWS]
    rows += [trial for trial in known[_ROWS:] if trial.baseline][:1]
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for place, trial in enumerate(rows):
            at = judged[trial.trial_id]["auc"]
            colour = VERMILION if place == 0 else INK if trial.baseline else BLUE
            marker = "D" if trial.baseline else "o"
            axes.plot([at["low"], at["high"]], [place, place], color=colour, linewidth=1.6)
            axes.plot(at["value"], place, marker, color=colour, markersize=6)
        best = judged[rows[0].trial_id]["auc"]["value"]
        axes.axvline(best, color=VERMILION, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [_name(trial) for trial in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("AUC, validation films, with 95 % interval")
        axes.grid(visible=False, axis="y")

    return chart(paint, alt="AUC of the best trials with their intervals", height=0.9 + 0.26 * len(rows))


def importance(found: Mapping[str, Any]) -> Markup:
    """Both shares of each parameter, the most important first."""
    methods = ((found["fanova"], "o", BLUE, "fANOVA"), (found["ped_anova"], "D", VERMILION, "PED-ANOVA"))
    names = {name for shares, *_ in methods for name in shares}
    shown = sorted(names, key=lambda name: (-sum(shares.get(name, 0) for shares, *_ in methods), name))[:_ROWS]

    def paint(axes: Axes) -> None:
        for shares, marker, colour, label in methods:
            told = [(100 * shares[name], place) for place, name in enumerate(shown) if name in shares]
            for value, place in told:
                axes.plot([0, value], [place, place], color=colour, linewidth=1.2, alpha=0.5)
            _points(axes, told, marker, color=colour, markersize=6, clip_on=False, label=label)
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("Share (%)")
        axes.grid(visible=False, axis="y")
        legend_below(axes)

    return chart(paint, alt=f"Importance of parameters; first {shown[0]}", height=1.15 + 0.27 * len(shown))


def pareto(ranked: Sequence[Trial]) -> Markup | None:
    """AUC against milliseconds a film, the trials that none beats in both joined; None where it was not measured."""
    trials = [trial for trial in ranked if trial.latency is not None]
    if len(trials) < 2:
        return None
    front = pareto_front(trials)
    floor = floor_of([trial.value for trial in trials])

    def paint(axes: Axes) -> None:
        shown = [trial for trial in trials[:DRAWN] if trial.value >= floor]
        _points(axes, [(t.latency, t.value) for t in shown if not t.baseline], "o", color=GREY, markersize=4)
        _points(
            axes, [(t.latency, t.value) for t in shown if t.baseline], "D", color=INK, markersize=6, label="baseline"
        )
        x, y = zip(*[(trial.latency, max(trial.value, floor)) for trial in front], strict=True)
        axes.step(x, y, where="post", color=VERMILION, linewidth=1.2)
        axes.plot(x, y, "o", color=VERMILION, markersize=6, label="on the front")
        if max(t.latency or 0 for t in trials) > 10 * min(t.latency or 0 for t in trials) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        auc_axis(axes, floor, front[-1].value)
        axes.set_xlabel("Milliseconds a film")
        legend_below(axes)

    return chart(paint, alt=f"AUC against milliseconds a film; {len(front)} trials are on the Pareto front")


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Those with a latency that no other beats in AUC without being slower, the fastest first."""
    timed = [trial for trial in trials if trial.latency is not None]
    front: list[Trial] = []
    for trial in sorted(timed, key=lambda trial: (trial.latency, -trial.value, trial.number)):
        if not front or trial.value > front[-1].value:
            front.append(trial)
    return front


def auc_axis(axes: Axes, floor: float, top: float) -> None:
    """From the floor to a little above the best; at the very top a line for the perfect AUC."""
    axes.set_ylim(floor, top + 0.06 * (top - floor))
    axes.set_ylabel("AUC, validation films")
    if top + 0.06 * (top - floor) >= 1:
        axes.axhline(1, color=INK, linewidth=0.8)


def floor_of(aucs: Sequence[float]) -> float:
    """Where the AUC axis begins: a few hopeless trials must not press all others into one line."""
    best, middle = max(aucs), median(aucs)
    return max(min(aucs), best - max(4 * (best - middle), 0.01)) - 0.002


def _name(trial: Trial) -> str:
    family = trial.family if len(trial.family) < 20 else trial.family[:18] + "…"
    return f"{trial.number} {family}"


def _points(axes: Axes, points: Sequence[tuple[Any, Any]], marker: str, **look: Any) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, linestyle="none", **look)
