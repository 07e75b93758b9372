"""The root of rayscan's exceptions.

They stand here, in the package that imports no other, so that every layer can raise them; the whole tree is drawn in
`pipelines/errors.py`.
"""


class RayscanError(Exception):
    """Something the person at the command line should read as one line, without a traceback.

    `exit_code` is what `rayscan` exits with when the error reaches it: 1 failed, 2 wrong input, 3 run again to resume.
    """

    exit_code = 1


class InputError(RayscanError):
    """Wrong usage or input. The message names the thing, says what is wrong with it and how to mend it."""

    exit_code = 2


class BundleError(InputError):
    """A model bundle is missing a file, was changed after it was made, or is of a newer format."""
