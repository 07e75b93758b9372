"""What all pages share: the frame, the style, and the formats of numbers and pictures.

A page is one HTML file that loads nothing: no script, no font, no external picture (its Content-Security-Policy
enforces that). It holds totals; for single scans only URI, site, study date and probability, and pictures if asked for;
nothing about patients. All values from files are escaped, in the text by Jinja and in the charts by matplotlib.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from models.spec import DISCLAIMER

DASH: Final = "\N{EN DASH}"
"""Between the ends of a range, and in place of a missing value."""


JPEG_QUALITY: Final = 80


def render(
    template: str, *, title: str, made: datetime | str | None, templates: Path | None = None, **values: Any
) -> str:
    """A whole page from one of the templates beside this module (or below it), or in the folder `templates`.

    `made` is the time shown on the page; None shows none. The same values give the same page.
    """
    own = Path(__file__).parent
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=FileSystemLoader([own] if templates is None else [templates, own]),
    )
    environment.filters |= {
        "grouped": grouped,
        "duration": duration,
        "interval": interval,
        "number": number,
        "plain": plain,
        "probability": probability,
        "share": share,
        "time": time,
    }
    page = environment.get_template(template)
    return page.render(title=title, made=made, disclaimer=DISCLAIMER, dash=DASH, **values)


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """A picture uint8 [H, W] or [H, W, 3] as the data URI of a JPEG: about 8 kB at 224 pixels."""
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


def grouped(value: int) -> str:
    """`51204` -> `51,204`."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """`3, 4` -> `75.0 %`. Never rounds a part to 0 % or to 100 %."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def number(value: float | None) -> str:
    """A number to four significant digits; a dash for None."""
    return DASH if value is None else f"{value:.4g}"


def probability(value: float) -> str:
    """`0.9731`; never rounds to certainty: `>0.9999`, `<0.0001`."""
    if 0.99995 <= value < 1:
        return ">0.9999"
    return "<0.0001" if 0 < value < 0.00005 else f"{value:.4f}"


def interval(value: Mapping[str, float]) -> str:
    """Estimate and 95 % interval: `0.987 (0.981-0.992)`, with an en dash."""
    return f"{value['value']:.3f} ({value['low']:.3f}{DASH}{value['high']:.3f})"


def duration(seconds: float | None) -> str:
    """`200` -> `3 min 20 s`."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def time(value: datetime | str) -> str:
    """`2026-11-20 03:12 UTC`, from a time or its ISO 8601 text; other text is returned as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return str(value)
    zone = " UTC" if value.tzinfo else ""
    return f"{value.astimezone(UTC) if zone else value:%Y-%m-%d %H:%M}{zone}"


def plain(value: Any) -> str:
    """A JSON value as short text: numbers to four digits, mappings as `name value` pairs."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return " · ".join(f"{name} {plain(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
