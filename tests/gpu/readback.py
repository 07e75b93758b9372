"""Films that another process wrote for this one."""

import numpy as np

from models.films import Films


def read_films(file: str) -> tuple[Films, Films]:
    """The training and the validation films of a file of the checks."""
    with np.load(file) as kept:
        return _films(kept["train"], kept["train_labels"]), _films(kept["val"], kept["val_labels"])


def _films(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", labels: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Films:  # fmt: skip  # noqa: E501
    names = np.array([str(index) for index in range(len(labels))])
    return Films(pixels=pixels, labels=labels, patients=names, subtypes=np.full(len(labels), ""), scan_ids=names)
