"""What every page shares: its frame, its style, how numbers are written, and how it is put where it was asked for.

A page is one HTML file that loads nothing: no script, no font, no picture from elsewhere (its Content-Security-Policy
says so to the browser too). It holds totals; of single scans only URI, site, study date and probability, and pictures
where they were asked for; of patients nothing. Everything that comes from files is escaped, by Jinja in the text and by
matplotlib in the charts.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from models.spec import DISCLAIMER
from pipelines.errors import InputError
from pipelines.storage import Store, open_store

DASH: Final = "\N{EN DASH}"
"""Between the ends of a range, and where there is no value."""


def render(template: str, *, title: str, **values: Any) -> str:
    """A whole page from one of the templates beside this module."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=PackageLoader("pipelines.results", "pages"),
    )
    environment.filters |= {
        "grouped": grouped,
        "duration": duration,
        "interval": interval,
        "number": number,
        "probability": probability,
        "share": share,
        "time": time,
    }
    page = environment.get_template(template)
    return page.render(title=title, made=datetime.now(UTC), disclaimer=DISCLAIMER, dash=DASH, **values)


def put_page(html: str, out: str) -> str:
    """Write a page to a local path or a URI, whole or not at all; returns its URI.

    Raises `InputError` when `out` names a folder or a bucket instead of a file.
    """
    target = open_store(out)
    folder, _, name = target.root.rpartition("/")
    if out.endswith("/") or folder.endswith(":/") or (target.is_local and target.path.is_dir()):
        raise InputError(f"{out}: a report is one file; name it, as in {out.rstrip('/')}/report.html")
    store = Store(folder)
    store.put(name, html.encode())
    return store.uri(name)


def grouped(value: int) -> str:
    """`51204` -> `51,204`."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """`3, 4` -> `75.0 %`. Never rounds something to nothing, nor nearly all to all."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def number(value: float | None) -> str:
    """A number to four significant digits; a dash for none."""
    return DASH if value is None else f"{value:.4g}"


def probability(value: float) -> str:
    """`0.9731`; never rounds to certainty: `>0.9999`, `<0.0001`."""
    if 0.99995 <= value < 1:
        return ">0.9999"
    return "<0.0001" if 0 < value < 0.00005 else f"{value:.4f}"


def interval(value: Mapping[str, float]) -> str:
    """Estimate and 95 % interval: `0.987 (0.981-0.992)`, with a longer dash."""
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
    """`2026-11-20 03:12 UTC`, of a time or of its ISO 8601 text; text that is no time stays as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return str(value)
    zone = " UTC" if value.tzinfo else ""
    return f"{value.astimezone(UTC) if zone else value:%Y-%m-%d %H:%M}{zone}"
