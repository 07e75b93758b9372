"""The page that links all pages of `rayscan demo`. Its links are relative, so that the folder can be moved."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pipelines.pages.frame import DASH, render
from pipelines.pages.night.drift import LEVEL_NAMES, quantity_names, read_findings
from pipelines.table.drift import Level, worst_level
from pipelines.table.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class DemoFigures:
    """The results of a demo."""

    films: int
    """Films of the labelled archive."""
    patients: int
    trials: int
    test_auc: Mapping[str, float]
    """`value`, `low` and `high` of the best model, on test patients."""
    test_films: int
    night: RunRecord
    """The night with films like the training films."""
    foreign: RunRecord
    """The night with films from another scanner."""
    pictures: tuple[str, str]
    """One film by the scanner of each night, as data URIs."""


def demo_page(figures: DemoFigures, commands: Sequence[str]) -> str:
    """HTML that links audit, study, model, evaluation, night and foreign.html beside it; `commands` to try next."""
    auc = figures.test_auc
    return render(
        "night/demo.html",
        made=datetime.now(UTC),
        title="Results of the demo",
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
    """The drift level of a run and the quantities at that level: `ALARM: brightness, contrast`."""
    level, moved = LEVEL_NAMES[_level(record)], _moved(record)
    return f"{level}: {moved}" if moved else level


def _level(record: RunRecord) -> Level:
    return worst_level(read_findings(asdict(record)))


def _moved(record: RunRecord) -> str:
    """The quantities at the worst level of a run, over all sites; empty below a warning."""
    level = _level(record)
    if level not in {"warn", "alarm"}:
        return ""
    findings = read_findings(asdict(record))
    return quantity_names([finding for finding in findings if finding.level == level and finding.site is None])
