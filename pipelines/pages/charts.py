"""Charts as inline SVG: drawn by matplotlib, in the colours and font of the page around them.

Axes and text use the page's text colour (`currentColor`), so one chart serves light and dark mode; text stays text and
uses the page's font. Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; colour is
never the only cue. A chart is 4.4 inches wide, so its text is about 11 px on a phone and larger elsewhere.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK: Final = "#010203"
"""A placeholder for the page's text colour, replaced in the SVG."""
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREY: Final = "#8A949E"

WIDTH: Final = 4.4
"""Inches."""

_GOOD: Final = 0.95
"""AUC above which a ROC chart shows its corner only."""
_CORNER: Final = 0.3
"""Side of that corner."""

Paint = Callable[[Axes], None]

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayscan",  # the ids within a chart depend on its contents only
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "axes.formatter.useoffset": False,
}

_LEFT_OUT = (
    re.compile(r"<metadata>.*?</metadata>", re.DOTALL),
    re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL),
    re.compile(r'(?<=<g) id="[^"]*"'),
    re.compile(r" font-family: [^;\"]*;?"),
    re.compile(r' transform="rotate\(-0 [^"]*\)"'),
)


def chart(paint: Paint, *, alt: str, height: float = 2.9) -> Markup:
    """Draw one chart: `paint` gets empty axes; `alt` describes the chart in a sentence; `height` is in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure.subplots())
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True)
    return _inline(sink.getvalue(), alt)


def svg_file(paint: Paint, *, height: float = 2.9) -> str:
    """One chart as a stand-alone SVG file, black on white, text drawn as paths, for pages that are not rayscan's."""
    with mpl.rc_context({**_STYLE, "svg.fonttype": "path"}):
        figure = Figure(figsize=(1.5 * WIDTH, height), layout="constrained", facecolor="white")
        paint(figure.subplots())
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()


def show_corner(axes: Axes, auc: float, marks: Sequence[tuple[float, float]] = ()) -> None:
    """Draw of ROC curves only the upper left, where all those of good models lie, unless a mark lies elsewhere.

    `auc` is the best curve's; marks are points (false alarms, sensitivity).
    """
    within = all(x < _CORNER and y > 1 - _CORNER for x, y in marks)
    side = _CORNER if auc > _GOOD and within else 1.0
    axes.set(xlabel="False alarms (1 - specificity)", ylabel="Sensitivity")
    axes.set(xlim=(0, side), ylim=(1 - side, 1 + side / 200))


def legend_below(axes: Axes, columns: int = 3) -> None:
    """A legend below the chart, where it covers nothing."""
    axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.4)


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only, for epochs and trials."""
    axis.set_major_locator(MaxNLocator(integer=True))


def _inline(svg: str, alt: str) -> Markup:
    """The part of an SVG file to embed in HTML."""
    opening = re.search(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', svg)
    assert opening is not None
    body = svg[opening.end() :]
    for pattern in _LEFT_OUT:
        body = pattern.sub("", body)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{opening[1]}">'
    # matplotlib has escaped all text in the chart
    return Markup(head + re.sub(r"\s*\n\s*", "\n", body))  # noqa: S704
