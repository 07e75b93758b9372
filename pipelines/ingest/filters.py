"""Which files of an archive are wanted: globs on the path below the archive, and a date on the time of change.

Light to import: wrong filters are told before anything is listed.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pipelines.errors import InputError

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What of an archive is to be listed; by default all of it.

    A glob without "/" is matched with the file's name, one with "/" with the path below the archive: `*` and `?` stop
    at "/", `**` does not. For a member of a container the path goes on behind it: `batch.zip!/p1.dcm`.
    """

    include: tuple[str, ...] = ()
    """Files that match none of these are left out."""
    exclude: tuple[str, ...] = ()
    """Files that match any of these are left out; a container that does, whole."""
    since: str | None = None
    """Files changed before this are left out: `2026-11-01`, `2026-11-01T18:00` (UTC), or `7d`, `12h` before now."""

    def __post_init__(self) -> None:
        for glob in (*self.include, *self.exclude):
            glob_pattern(glob)
        self.earliest(datetime.now(UTC))

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.since)

    def earliest(self, now: datetime) -> datetime | None:
        """The time of change from which on files are wanted. Raises `InputError` for text that is none."""
        if self.since is None:
            return None
        if span := re.fullmatch(r"(\d{1,5})([mhdw])", self.since.strip()):
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        try:
            moment = datetime.fromisoformat(self.since.strip())
        except ValueError as error:
            raise InputError(f"--since {self.since!r}: write a date such as 2026-11-01, or 7d or 12h") from error
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_filters(include: str | None, exclude: str | None, since: str | None) -> Filters:
    """Filters from comma-separated globs. Raises `InputError` for a glob or a date that is none."""

    def globs(text: str | None) -> tuple[str, ...]:
        return tuple(glob.strip() for glob in (text or "").split(",") if glob.strip())

    return Filters(include=globs(include), exclude=globs(exclude), since=since)


def glob_pattern(glob: str) -> str:
    """The regular expression of a glob, anchored at both ends. Raises `InputError` for an unclosed bracket."""
    body, at = "", 0
    while at < len(glob):
        rest = glob[at:]
        if rest.startswith("**/"):
            piece, width = r"(?:.*/)?", 3
        elif rest.startswith("**"):
            piece, width = ".*", 2
        elif rest[0] == "[":
            end = rest.find("]", 2)
            if end < 0:
                raise InputError(f"the glob {glob!r} has a [ without a ]")
            inner = rest[1:end].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
            piece, width = f"[{'^' + inner[1:] if inner[0] in '!^' else inner}]", end + 1
        else:
            piece, width = {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])), 1
        body, at = body + piece, at + width
    try:
        re.compile(body)
    except re.error as error:
        raise InputError(f"the glob {glob!r} is none: {error}") from error
    # RE2 and Python read (?s) alike: a dot also matches what a name should not hold
    return f"(?s)^{body.removeprefix('/')}$" if "/" in glob else f"(?s)(?:^|/){body}$"
