"""What the tests of the night's page share: the rows of a run, and a finding of drift as run.json holds it."""

from typing import Any

from pipelines.table.drift import DriftFinding, Level
from tests.pipelines.pages.samples import Outcome

NIGHT = [
    Outcome(1500, probability=0.03),
    Outcome(300, probability=0.97, site="south"),
    Outcome(1, probability=1.0),
    Outcome(8, reason="truncated", status="unreadable"),
    Outcome(4, reason="not_frontal", status="rejected", site=None),
]


def finding(level: Level, site: str | None = None, quantity: str = "grey_mean", **changes: Any) -> dict[str, Any]:
    """As run.json holds it."""
    values: dict[str, Any] = {"n": 500, "psi": 0.614, "ks": 0.4, "note": "90 % of them above the reference's median"}
    if quantity == "reject_share":
        values = {"n": 500, "psi": None, "ks": None, "note": "9.0 % tonight, 2.0 % in the earlier runs", "share": 0.09}
    return DriftFinding(site=site, quantity=quantity, level=level, **{**values, **changes}).to_json()
