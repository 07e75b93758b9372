"""What a verb says: the result on stdout, for people or (--json) for machines; logs on stderr."""

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, TextIO


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a bar that is being drawn takes its place for a while.

    A traceback goes to the log file of the process, which the line names; with --debug it is printed, too.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # which only reads it
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback only with --debug."""
        if not (record.exc_info and record.exc_info[1]):
            return super().format(record)
        from cluster import run_log

        kept = f"; the traceback is in {run_log.write_traceback(record.exc_info[1])}"
        line = logging.makeLogRecord({**record.__dict__, "msg": record.getMessage() + kept, "args": None})
        if not logging.getLogger("rayscan").isEnabledFor(logging.DEBUG):
            line.exc_info = line.exc_text = None
        return super().format(line)


def set_up_logging(verbose: bool = False) -> None:
    """Send rayscan's log to stderr, one plain line a message."""
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("rayscan")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def show(result: Any, *, as_json: bool) -> None:
    """Print a verb's result: a dataclass, a mapping or a list of either."""
    plain = _plain(result)
    if as_json:
        write(json.dumps(plain, default=str))
        return
    blocks = plain if isinstance(plain, list) else [plain]
    write("\n\n".join(_lines(block) for block in blocks))


def write(text: str) -> None:
    """One text and a newline to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line to stderr that a person must read."""
    sys.stderr.write(f"rayscan: {text}\n")


def restore_terminal() -> None:
    """Show the cursor that a bar has hidden, and pass on what is buffered: for a process that leaves at once."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")
    sys.stderr.flush()
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _lines(block: Any) -> str:
    if not isinstance(block, Mapping):
        return str(block)
    shown = {name: _short(value) for name, value in block.items() if value not in (None, "")}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(
        f"{name.replace('_', ' ') if first else '':<{width}}  {line}"
        for name, text in shown.items()
        for first, line in _numbered(text)
    )


def _numbered(text: str) -> list[tuple[bool, str]]:
    return [(number == 0, line) for number, line in enumerate(text.split("\n"))]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "\n".join(_short(inner) for inner in value) or "none"
    return str(value)
