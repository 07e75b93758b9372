"""The shape to which the films of a catalogue are cut when they are harmonised."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts import LABELS
from pipelines.errors import InputError

WIDEST: Final = 4.0
"""Width over height of the widest shape that films are cut to, and its inverse of the highest."""


def common_aspect(films: pa.Table, catalog: str) -> float:
    """Width over height that costs both classes about as much: the mean of their medians, to two digits.

    `films` has the columns label, split, width and height. The training films decide, if there are any: a model must
    not depend on the test films. Raises `InputError` where no sizes are known.
    """
    known = films.filter(pc.and_(pc.greater(films["width"], 0), pc.greater(films["height"], 0)))
    train = known.filter(pc.equal(known["split"], "train"))
    chosen = train if train.num_rows else known
    ratios = pc.divide(pc.cast(chosen["width"], pa.float64()), pc.cast(chosen["height"], pa.float64())).to_numpy()
    labels = chosen["label"].to_numpy(zero_copy_only=False)
    medians = [float(np.median(ratios[labels == label])) for label in LABELS if (labels == label).any()]
    if not medians:
        raise InputError(
            f"{catalog}: --harmonise needs the sizes of the films; make the catalogue with --inspect, or give --aspect"
        )
    return round(min(max(sum(medians) / len(medians), 1 / WIDEST), WIDEST), 2)
