"""What a person may choose beside a recipe: how a model is selected among several, and how films are dealt to folds.

Apart from the modules that act on it, as the command line reads it, which starts without torch.
"""

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from models.errors import InputError

Select = Literal["auc", "robust"]
"""How a study's model, or the combination of a grid, is selected; `tuning/recipes/selection.py` does it."""
SELECTS: Final = get_args(Select)

FoldsBy = Literal["random", "blocks", "site"]
"""How films are dealt to folds; `tuning/recipes/dealing.py` does it."""
MOST_FOLDS: Final = 50


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How many folds, and how films are dealt to them."""

    count: int = 5
    by: FoldsBy = "random"

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST_FOLDS:
            raise InputError(f"{self.count} folds are out of range; choose 2 to {MOST_FOLDS}")

    def __str__(self) -> str:
        return f"{self.by}:{self.count}"


def parse_folds(text: str) -> Folds:
    """Of `5`, `blocks` or `blocks:5`. Raises `InputError`."""
    by, _, count = ("random", "", text) if text.lstrip("-").isdigit() else text.partition(":")
    if by not in get_args(FoldsBy) or (count and not count.lstrip("-").isdigit()):
        known = ", ".join(get_args(FoldsBy))
        raise InputError(f"unknown folds {text!r}; choose a number, {known}, or both, as in blocks:4")
    return Folds(by=cast(FoldsBy, by), count=int(count) if count else Folds.count)
