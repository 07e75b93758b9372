"""The page of `rayscan audit`: what in an archive would spoil a study."""

from datetime import UTC, datetime

from pipelines.ingest.audit import FACTS, Audit
from pipelines.pages.frame import render


def audit_page(findings: Audit) -> str:
    """HTML of the findings: the verdicts first, then the figures behind them."""
    return render("audit.html", made=datetime.now(UTC), title="Audit", audit=findings, names=FACTS)
