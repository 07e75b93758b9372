"""Values as TOML, which Python reads and does not write."""

import json
from typing import Any


def toml_value(value: Any) -> str:
    """A string, number, truth value, list or inline table as TOML, which has JSON's scalars and lists."""
    if isinstance(value, dict):
        return f"{{ {', '.join(toml_lines(value))} }}"
    # JSON leaves the delete character as it is, and TOML allows it only as an escape
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def toml_lines(table: dict[str, Any]) -> list[str]:
    """A line for each key; keys are rayscan's own names, which need no quotes."""
    return [f"{name} = {toml_value(value)}" for name, value in table.items()]
