"""How a night is scored: what a person or a job file may choose.

A module of its own because it imports nothing heavy: `cluster/preflight.py` refuses wrong settings before Ray, torch or
DuckDB is loaded.
"""

from dataclasses import dataclass, field

from models.engines.machine import PRECISIONS, Precision
from models.errors import InputError
from models.messages import did_you_mean
from models.statistics.calibration import Calibration
from pipelines.ingest.filters import Filters
from pipelines.pages.page_file import check_thumbnails
from pipelines.pools import ActorLimits
from pipelines.provenance import check_site


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How to score. The defaults suit an archive of any size."""

    shard_size: int | None = None
    """Scans of one part; None: it grows with the plan."""
    operating_point: str | None = None
    """Name of the locked threshold behind `prediction`; None: the bundle's default."""
    precision: Precision | None = None
    """`fp32` scores exactly as the model was evaluated; None: the fastest engine that the bundle allows."""
    max_nights: int = 5
    """A scan that failed in this many runs is not planned again."""
    actors: ActorLimits = field(default=ActorLimits())
    """How many actors, GPUs and how much memory to ask the cluster for."""
    again: tuple[str, ...] = ()
    """Reasons: scans that another version of the decoder, or `max_nights` runs, gave up with one are planned again."""
    names_uris: bool = False
    """The source is a file that lists the URIs to score, not an archive or a catalogue."""
    allow_removals: bool = False
    """Mark files as removed even if more than half of those known are no longer listed."""
    filters: Filters = field(default=Filters())
    """What of an archive is listed."""
    site: str | None = None
    """The site of scans whose catalogue names none."""
    site_from: str | None = None
    """Where it stands instead: `institution` of the header, or the number of a folder below the archive, from 1."""
    identity: bool = True
    """Keep the unique identifiers of DICOM scans, apart from the scores: `pipelines/scoring/identity.py`."""
    score_unfamiliar: bool = False
    """Keep the probability of unfamiliar films, for research: they stay rejected, and have no prediction."""
    largest_scan: int = 1 << 30
    """Bytes of the largest file that is fetched; a larger one is `too_large`."""
    wait: float = 0.0
    """Seconds to wait for another run with this model on the same scores."""
    report: bool = True
    """Write the night's report beside its record."""
    thumbnails: int = 0
    """Worklist films pictured in the report, the first of them with the model's map. They are images of patients."""

    def __post_init__(self) -> None:
        if self.shard_size is not None and not 1 <= self.shard_size <= 100_000:
            raise InputError(f"shard size {self.shard_size} is out of range; choose 1 to 100000 scans")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; choose {' or '.join(PRECISIONS)}")
        check_thumbnails(self.thumbnails)
        check_site(self.site, self.site_from)
        for name, low in (("max_nights", 1), ("wait", 0), ("largest_scan", 1)):
            value = getattr(self, name)
            if value < low:
                raise InputError(f"{name}={value} is out of range; choose {low} or more")


def reasons(names: str) -> tuple[str, ...]:
    """The reasons of a comma-separated list. Raises `InputError` for one with which no scan is given up."""
    from pipelines.contracts import STATUS_OF_REASON, Status  # noqa: PLC0415 (pyarrow)

    known = [reason.value for reason, status in STATUS_OF_REASON.items() if status is not Status.REMOVED]
    named = [name.strip() for name in names.split(",") if name.strip()]
    for name in named:
        if name not in known:
            hint = did_you_mean(name, known) or f"choose from {', '.join(known)}"
            raise InputError(f"no scan is given up with the reason {name!r}; {hint}")
    return tuple(named)


def operating_point(calibration: Calibration, name: str | None) -> str:
    """The name of the operating point to use; None: the default. Raises `InputError` for an unknown one."""
    points = calibration.operating_points
    if name is not None and name not in points:
        raise InputError(f"the model has no operating point {name!r}; choose from {', '.join(sorted(points))}")
    return name or calibration.default
