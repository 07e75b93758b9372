"""The charts of an audit: shapes, sizes and grey levels of the films, by class."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes

from pipelines.ingest.looked import BINS, Film
from pipelines.pages.charts import BLUE, GREY, VERMILION, chart, legend_below

POINTS: Final = 2_000
_LOOKS: Final = {"NORMAL": (BLUE, "-", "o"), "PNEUMONIA": (VERMILION, "--", "x")}
_OTHER: Final = (GREY, ":", ".")

Shapes = Mapping[str, Sequence[tuple[int, int]]]
"""Label -> (width, height) of its films."""


def aspects_chart(shapes: Shapes) -> Markup:
    """Histogram of width over height, in per cent of each class."""
    ratios = {label: np.array([w / h for w, h in sizes]) for label, sizes in shapes.items()}
    every = np.concatenate([*ratios.values()])
    low, high = np.percentile(every, [0.5, 99.5])
    edges = np.linspace(min(low, 0.9), max(high, 1.1), 33)

    def paint(axes: Axes) -> None:
        for label, values in ratios.items():
            _stairs(axes, np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0], edges, label)
        axes.set(xlabel="Width over height", ylabel="Films of the class (%)")
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return chart(paint, alt="Histogram of the aspect ratio of the films of each class")


def sizes_chart(shapes: Shapes) -> Markup:
    """Width against height of up to POINTS films of each class."""

    def paint(axes: Axes) -> None:
        for label, sizes in shapes.items():
            colour, _, marker = _LOOKS.get(label, _OTHER)
            step = -(-len(sizes) // POINTS)
            width, height = np.array(sizes[::step]).T
            axes.plot(width, height, marker, color=colour, markersize=3.5, alpha=0.6, linestyle="none", label=label)
        axes.set(xlabel="Width (pixels)", ylabel="Height (pixels)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return chart(paint, alt="Width and height of the films of each class")


def greys_chart(films: Sequence[Film]) -> Markup:
    """Mean histogram of grey levels, in per cent of the pixels of each class."""
    labels = sorted({film.row["label"] or "none" for film in films})
    edges = np.linspace(0, 256, BINS + 1)

    def paint(axes: Axes) -> None:
        for label in labels:
            own = [film.grey for film in films if (film.row["label"] or "none") == label]
            _stairs(axes, np.mean(own, axis=0), edges, label)
        axes.set(xlabel="Grey level (0 black, 255 white)", ylabel="Pixels of the class (%)", xlim=(0, 256))
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return chart(paint, alt="Mean histogram of the grey levels of the films of each class")


def _stairs(axes: Axes, counts: npt.NDArray[Any], edges: npt.NDArray[np.float64], label: str) -> None:
    colour, line, _ = _LOOKS.get(label, _OTHER)
    shares = 100 * counts / max(counts.sum(), 1e-9)
    axes.stairs(shares, edges, fill=True, color=colour, alpha=0.2)
    axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=line, label=label)
