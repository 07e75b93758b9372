"""The earlier nights as small charts: whether tonight's figures are as usual."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipelines.pages.charts import BLUE, GREY, VERMILION, chart


@dataclass(frozen=True, kw_only=True)
class Night:
    """The figures of one run in the charts."""

    date: str
    scans: int
    """Rows written."""
    scored: int
    positives: int
    left_out: int
    """Rejected or unreadable."""
    rate: float | None
    """Scans per second; None if not recorded or nothing was to do."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One chart and its caption."""

    chart: Markup
    caption: str


def courses(nights: Sequence[Night]) -> list[Course]:
    """Charts of scans, percentages and rate of these nights, oldest first, tonight last; none for a first night."""
    if len(nights) < 2:
        return []
    seen = [night.scored + night.left_out for night in nights]
    figures = {
        "Scans": [float(night.scans) for night in nights],
        "Called positive, % of scored": [_percent(night.positives, night.scored) for night in nights],
        "Rejected or unreadable, %": [_percent(night.left_out, n) for night, n in zip(nights, seen, strict=True)],
        "Scans per second": [night.rate or math.nan for night in nights],
    }
    dates = [night.date for night in nights]
    return [_course(name, values, dates) for name, values in figures.items() if not all(map(math.isnan, values))]


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan


def _course(name: str, values: Sequence[float], dates: Sequence[str]) -> Course:
    earlier = [value for value in values[:-1] if not math.isnan(value)]
    usual = median(earlier) if earlier else None
    tonight = "no figure tonight" if math.isnan(values[-1]) else f"{_short(values[-1])} tonight"
    known = f"the {len(earlier)} nights before" if len(earlier) > 1 else "the night before"
    caption = f"{name}: {tonight}" + ("" if usual is None else f", {_short(usual)} in {known} (median, dashed)")
    last = len(values) - 1

    def paint(axes: Axes) -> None:
        if usual is not None:
            axes.axhline(usual, color=GREY, linewidth=1.2, linestyle="--")
        axes.plot(range(len(values)), values, "o-", color=BLUE, markersize=3, linewidth=1.2)
        axes.plot([last], values[-1:], "D", color=VERMILION, markersize=8, clip_on=False)
        known_values = [value for value in values if not math.isnan(value)]
        axes.set_ylim(0, 1.15 * max(known_values) or 1)
        axes.set_xlim(-0.5, last + 0.5)
        places = sorted({0, last // 2, last})
        axes.set_xticks(places, [dates[place][5:] for place in places])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))

    return Course(chart=chart(paint, alt=caption, height=1.5), caption=caption)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
