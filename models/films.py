"""Prepared films in memory: what training and evaluation read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Films:
    """N prepared films. Arrays may be read-only views of shared memory."""

    pixels: npt.NDArray[np.uint8]
    """Grey levels [N, size, size]."""
    labels: npt.NDArray[np.int64]
    """Class index [N]: 0 NORMAL, 1 PNEUMONIA."""
    patients: npt.NDArray[np.str_]
    """Patient key [N]; films of one patient share it."""
    subtypes: npt.NDArray[np.str_]
    """`bacteria`, `virus` or the empty string [N]."""
    scan_ids: npt.NDArray[np.str_]
    """Scan identity [N]."""

    groups: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    """Kind of subgroup (`site`, `view`, `width`) -> the name of each film's [N], empty where it is not known."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the square films in pixels."""
        return int(self.pixels.shape[-1])
