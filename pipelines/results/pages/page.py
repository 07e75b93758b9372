"""The frame of `models/pages/page.py` around the templates of this folder."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.pages import page


def render(template: str, *, title: str, **values: Any) -> str:
    """A whole page of now, from one of the templates beside this module."""
    return page.render(template, title=title, made=datetime.now(UTC), templates=Path(__file__).parent, **values)
