"""Why a trial failed, in one line that a study may keep."""

import re

_PATH = re.compile(
    r"""
    (?<!\w)(?P<quote>['"])              # quoted, as repr() writes a string:
    (?=(?:(?!(?P=quote))[^/\\])*[/\\])  # with a slash before the quote ends,
    (?:\\.|(?!(?P=quote)(?!\w))[^\\])*  # up to where it does (a quote before a letter is of the name),
    (?:(?P=quote)|$)                    # or to the end of the line
    |
    (?:[^\s'"]|(?<=\w)['"])*[/\\]        # or as it is: from the word that has a slash
    .*?(?=:[ ]|;[ ]|$)                  # up to the next colon or semicolon: names may hold spaces
    """,
    re.VERBOSE,
)
"""A path or URI in a message."""


def brief(error: BaseException | None) -> str:
    """One short line on why a trial failed, with `<path>` for every path or URI: file names may name patients.

    A quoted name ends with its quote, any other at the next `: ` or `; `. So a message must put a colon behind the name
    of a file, or its reason is cut out as part of the name.
    """
    cause = getattr(error, "cause", None) or error
    if cause is None:
        return "the trial's process died"
    first = next(iter(str(cause).strip().splitlines()), "")[:1000]
    return f"{type(cause).__name__}: {_PATH.sub('<path>', first)}"[:200]
