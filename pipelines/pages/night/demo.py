"""The page that links all pages of `rayscan demo`. Its links are relative, so that the folder can be moved."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pipelines.pages.frame import DASH, render
from pipelines.pages.night.drift import LEVEL_NAMES, names, read_findings
from pipelines.table.drift import Level, worst_level
from pipelines.table.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class DemoFigures:
    """What came of a demo."""

    films: int
    """Of the labelled archive."""
    patients: int
    trials: int
    test_auc: Mapping[str, float]
    """`value`, `low` and `high` of the best model, on test patients."""
    test_films: int
    night: RunRecord
    """The night like the training films."""
    foreign: RunRecord
    """The night from another scanner."""
    pictures: tuple[str, str]
    """One film by the scanner of each night, as data URIs."""


def demo_page(figures: DemoFigures, commands: Sequence[str]) -> str:
    """HTML that stands beside audit, study, model, evaluation, night and foreign.html; `commands` are to type next."""
    auc = figures.test_auc
    return render(
        "night/demo.html",
        made=datetime.now(UTC),
        title="What the demo made",
        figures=figures,
        auc=f"{auc['value']:.3f}",
        auc_interval=f"{auc['low']:.3f}{DASH}{auc['high']:.3f}",
        level_names=LEVEL_NAMES,
        moved=_moved(figures.foreign),
        nights=(figures.night, figures.foreign),
        pictures=figures.pictures,
        commands=commands,
    )


def drift_in_words(record: RunRecord) -> str:
    """The drift of a run and which quantities it is of: `ALARM: brightness, contrast`."""
    level, moved = LEVEL_NAMES[_level(record)], _moved(record)
    return f"{level}: {moved}" if moved else level


def _level(record: RunRecord) -> Level:
    return worst_level(read_findings(asdict(record)))


def _moved(record: RunRecord) -> str:
    """The quantities at the worst level of a run, over all sites; empty when that is no warning."""
    level = _level(record)
    if level not in {"warn", "alarm"}:
        return ""
    return names([found for found in read_findings(asdict(record)) if found.level == level and found.site is None])
