"""How many folds patients can be dealt to."""

from typing import Final

from models.errors import InputError

FOLDS: Final = 5
MOST_FOLDS: Final = 50


def check_folds(folds: int) -> None:
    """Raise `InputError` for a number of folds that cannot be dealt."""
    if not 2 <= folds <= MOST_FOLDS:
        raise InputError(f"{folds} folds are out of range; choose 2 to {MOST_FOLDS}")
