"""The drift of a run as a table, one row per site with the worst first, and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.table.drift import (
    LEVELS,
    OUTSIDE_SHARE,
    REJECT_SHARE,
    UNFAMILIAR_SHARE,
    DriftFinding,
    Level,
    worst_level,
)

SITES_SHOWN: Final = 20

QUANTITY_NAMES: Final = {
    "probability": ("Probability", "of pneumonia"),
    "grey_mean": ("Brightness", "mean grey level"),
    "grey_spread": ("Contrast", "standard deviation of the grey levels"),
    "ood_score": ("Distance", "from the training films"),
    REJECT_SHARE: ("Reject rate", "rejected or unreadable"),
    UNFAMILIAR_SHARE: ("Unfamiliar", "unlike the films the model learned from"),
    OUTSIDE_SHARE: ("Outside its use", "by the header not of those the model was made for"),
}
LEVEL_NAMES: Final[dict[Level, str]] = {"too_few": "too few", "ok": "ok", "warn": "warning", "alarm": "ALARM"}


@dataclass(frozen=True, kw_only=True)
class SiteDrift:
    """One row of the table."""

    name: str
    films: int
    level: Level
    cells: Sequence[DriftFinding | None]
    """In the order of `QUANTITY_NAMES`."""


@dataclass(frozen=True, kw_only=True)
class SiteDriftTable:
    """The table on the page: all sites together first, then the worst sites."""

    rows: Sequence[SiteDrift]
    level: Level
    more_sites: int
    notes: Sequence[str]
    """Why drift over all sites could not be judged."""


def read_findings(record: Mapping[str, Any]) -> list[DriftFinding]:
    """The findings of a run.json; none in one of an earlier version."""
    return [DriftFinding.from_json(value) for value in record.get("drift") or ()]


def site_drift_table(findings: Sequence[DriftFinding]) -> SiteDriftTable | None:
    """The table of these findings; None if there are none."""
    if not findings:
        return None
    of_site: dict[str | None, dict[str, DriftFinding]] = {}
    for finding in findings:
        of_site.setdefault(finding.site, {})[finding.quantity] = finding
    rows = [_row(site, own) for site, own in of_site.items() if site is not None]
    rows.sort(key=lambda row: (-LEVELS.index(row.level), -row.films, row.name))
    whole = _row(None, of_site.get(None, {}))
    return SiteDriftTable(
        rows=[whole, *rows[:SITES_SHOWN]],
        level=worst_level(findings),
        more_sites=max(0, len(rows) - SITES_SHOWN),
        notes=list(dict.fromkeys(f.note for f in of_site.get(None, {}).values() if f.level == "too_few")),
    )


def quantity_names(findings: Sequence[DriftFinding]) -> str:
    """The display names of their quantities: `brightness, contrast`."""
    return ", ".join(_name(finding).lower() for finding in findings)


def describe(finding: DriftFinding) -> str:
    """The figures of a finding in a sentence: `Brightness: PSI 0.61, KS 0.40; 96 % of them above ….`."""
    figures = "" if finding.psi is None or finding.ks is None else f"PSI {finding.psi:.2f}, KS {finding.ks:.2f}; "
    return f"{_name(finding)}: {figures}{finding.note}."


def _name(finding: DriftFinding) -> str:
    return QUANTITY_NAMES.get(finding.quantity, (finding.quantity,))[0]


def _row(site: str | None, findings: Mapping[str, DriftFinding]) -> SiteDrift:
    return SiteDrift(
        name="All sites" if site is None else site,
        films=max((finding.n for finding in findings.values()), default=0),
        level=worst_level(list(findings.values())),
        cells=[findings.get(quantity) for quantity in QUANTITY_NAMES],
    )
