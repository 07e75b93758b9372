"""What a person may choose beside a recipe: how a model is selected among several, and the number of folds.

Apart from the modules that act on it, as the command line reads it, which starts without torch.
"""

from typing import Final, Literal, get_args

from models.errors import InputError

Select = Literal["auc", "robust"]
"""How a study's model, or the combination of a grid, is selected; `tuning/recipes/selection.py` does it."""
SELECTS: Final = get_args(Select)

FOLDS: Final = 5
MOST_FOLDS: Final = 50


def check_folds(folds: int) -> None:
    """Raise `InputError` unless patients can be dealt to this number of folds."""
    if not 2 <= folds <= MOST_FOLDS:
        raise InputError(f"{folds} folds are out of range; choose 2 to {MOST_FOLDS}")
