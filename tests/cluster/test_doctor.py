"""`rayscan doctor`: a healthy node, and each illness by its facts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.doctor import Finding, NodeFacts, NodeProbe, examine, judge

GIB = 2**30
HEALTHY = NodeFacts(
    python="3.11.7",
    libraries={"ray": "2.60.0", "pillow": "13.0.0"},
    source="0123456789abcdef",
    free_bytes=100 * GIB,
    total_bytes=200 * GIB,
    gpus=1,
)


def ill(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.state) for finding in findings if finding.state != "ok"]


@pytest.mark.usefixtures("ray_session")
def test_a_healthy_node_with_reach_passes(tmp_path: Path) -> None:
    findings = examine(tmp_path.as_uri())
    assert {finding.check for finding in findings} == {
        *("python", "libraries", "code", "clock", "disk", "gpus", "storage"),
    }
    assert all(finding.ok for finding in findings if finding.check != "disk")
    assert len({finding.node for finding in findings}) == 1


def test_a_store_out_of_reach_is_named(tmp_path: Path) -> None:
    wrong, seconds = NodeProbe().reach(str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in wrong
    assert seconds < 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda facts: facts, []),
        (lambda facts: replace(facts, python="3.12.1"), [("python", "fail")]),
        (lambda facts: replace(facts, libraries={"ray": "2.60.0", "pillow": "12.0.0"}), [("libraries", "fail")]),
        (lambda facts: replace(facts, source="f" * 16), [("code", "fail")]),
        (lambda facts: replace(facts, free_bytes=9 * GIB, total_bytes=100 * GIB), [("disk", "warn")]),
        (lambda facts: replace(facts, free_bytes=9 * GIB), [("disk", "fail")]),
        (lambda facts: replace(facts, gpus=0), [("gpus", "fail")]),
        (lambda facts: replace(facts, gpus=2), [("gpus", "warn")]),
    ],
)
def test_each_illness_is_found_alone(change: Callable[[NodeFacts], NodeFacts], expected: list[tuple[str, str]]) -> None:
    findings = judge("node", change(HEALTHY), HEALTHY, skew=0.01, ray_gpus=1)
    assert ill(findings) == expected
    assert all(finding.mend for finding in findings if finding.state != "ok")


@pytest.mark.parametrize(("skew", "state"), [(0.5, "ok"), (-5.0, "warn"), (300.0, "fail")])
def test_a_clock_that_runs_away_is_told_by_how_far(skew: float, state: str) -> None:
    (clock,) = (f for f in judge("node", HEALTHY, HEALTHY, skew=skew, ray_gpus=1) if f.check == "clock")
    assert clock.state == state
    assert clock.ok == (state != "fail")
