"""The parts of a data set, by name. Imports nothing heavy, so that the command line can list them."""

from typing import Final, Literal, get_args

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[str, ...]] = get_args(Split)

Patients = Literal["known", "unknown"]
"""Whether a labelled archive must name the patients of its films."""
