"""How a night is scored: what a person or a job file may choose. Imports nothing heavy."""

from dataclasses import dataclass

from models.engines.machine import PRECISIONS, Precision
from models.errors import InputError
from models.statistics.calibration import Calibration
from pipelines.pages.page import check_thumbnails


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How to score. The defaults suit an archive of any size."""

    shard_size: int = 256
    """Scans of one part."""
    operating_point: str | None = None
    """Name of the locked threshold that decides `prediction`; None takes the bundle's default."""
    precision: Precision | None = None
    """`fp32` scores exactly as the model was judged; None takes the fastest engine that the bundle allows."""
    max_nights: int = 5
    """A scan that failed in so many runs is not planned again."""
    most_actors: int | None = None
    """On a cluster that grows: ask for up to so many scoring actors."""
    wait: float = 0.0
    """Seconds to wait for another run with this model at the same scores."""
    report: bool = True
    """Write the night's report beside its record."""
    thumbnails: int = 0
    """Films of the worklist that the report shows, the first with the model's map; they are patients' images."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= 100_000:
            raise InputError(f"shard size {self.shard_size} is out of range; choose 1 to 100000 scans")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; choose {' or '.join(PRECISIONS)}")
        check_thumbnails(self.thumbnails)
        for name, low in (("max_nights", 1), ("most_actors", 1), ("wait", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value} is out of range; choose {low} or more")


def operating_point(calibration: Calibration, name: str | None) -> str:
    """The name of the locked threshold to decide by, the default for None. Raises `InputError` for one there is not."""
    points = calibration.operating_points
    if name is not None and name not in points:
        raise InputError(f"the model has no operating point {name!r}; choose from {', '.join(sorted(points))}")
    return name or calibration.default
