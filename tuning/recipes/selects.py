"""How a study's model, or the combination of a grid, is picked: `tuning/recipes/selection.py` picks it."""

from typing import Final, Literal, get_args

Select = Literal["auc", "robust"]
SELECTS: Final = get_args(Select)
