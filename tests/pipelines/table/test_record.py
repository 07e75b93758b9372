"""What a run says of itself in short."""

from dataclasses import fields
from typing import Any

import pytest

from pipelines.table.drift import NOT_THESE, DriftFinding, Level
from pipelines.table.record import RunRecord


def record(**values: Any) -> RunRecord:
    return RunRecord(**{**{field.name: field.name for field in fields(RunRecord)}, "engine": None, **values})


def finding(level: Level, site: str | None = None, quantity: str = "probability", **values: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"n": 90, "psi": 0.3, "ks": 0.2, "note": "9 % of them above", **values}
    return DriftFinding(site=site, quantity=quantity, level=level, **known).to_json()


def test_what_was_left_out_is_a_line_a_folder_and_one_for_the_rest() -> None:
    folder = {"prefix": "s3://films/south/", "scans": 40, "reason": "access_denied", "told": "Forbidden"}
    assert record(reasons={"blank": 3}, quarantined=[]).left_out() == []
    assert len(record(reasons={"access_denied": 40}, quarantined=[folder]).left_out()) == 1
    *_, rest = record(source="s3://films", reasons={"access_denied": 42}, quarantined=[folder]).left_out()
    assert rest == "s3://films: 2 single scans could not be read (access_denied); the view rejects has them"


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


def test_that_the_patients_are_others_is_the_first_thing_told() -> None:
    others = finding("alarm", "adults", "unfamiliar_share", note=f"{NOT_THESE}: 94 % of 90 films", share=0.94)
    some = finding("alarm", "north", "unfamiliar_share", share=0.3)
    short = record(drift=[finding("ok"), some, others], drift_level="alarm").in_short()
    assert next(iter(short.items())) == ("alarm", [f"{NOT_THESE}: 94 % of 90 films (adults)"])
    assert "alarm" not in record(drift=[some], drift_level="alarm").in_short()
