"""What a run says of itself in short."""

from dataclasses import fields
from typing import Any

import pytest

from pipelines.table.record import RunRecord


def record(**values: Any) -> RunRecord:
    return RunRecord(**{**{field.name: field.name for field in fields(RunRecord)}, "engine": None, **values})


def finding(level: str, site: str | None = None) -> dict[str, Any]:
    return {"level": level, "quantity": "probability", "site": site, "note": "9 % of them above"}


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        ([], "too few"),
        ([finding("ok"), finding("too_few", "north")], "too few"),
        (
            [finding("ok"), finding("alarm", "north"), finding("warn")],
            [
                "alarm: probability of north, 9 % of them above",
                "warn: probability of all sites, 9 % of them above",
            ],
        ),
    ],
)
def test_only_drift_that_is_found_is_told(findings: list[dict[str, Any]], told: object) -> None:
    short = record(drift=findings, drift_level="too_few", engine={"name": "torch", "version": "2"}).in_short()
    assert short["drift"] == told
    assert short["engine"] == "torch"
    assert {"counts", "reasons", "notice"} <= short.keys()
    assert "versions" not in short
