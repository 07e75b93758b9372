"""What error messages share: the name that was probably meant, a library's error in one line, and what is behind it."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """`did you mean 'cnn'?`, with up to `most` of the `known` names closest to this one; empty when none is close."""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of the error's text that says anything, else the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised: Ray wraps it, with its traceback as text, once for each task that waited for it."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error
