"""One run must tell all of it: a check that fails keeps no other from being made."""

import json
import time
from pathlib import Path

import pytest

from tests.gpu.harness import Figures, Harness, SkippedError, require


def test_a_failed_check_is_told_and_the_next_one_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harness = Harness(tmp_path / "figures.json", budget_s=60)

    def fails(figures: Figures) -> None:
        figures["seen"] = 3
        require(False, "it is another")

    def skipped(figures: Figures) -> None:
        raise SkippedError("there is no GPU")

    def passes(figures: Figures) -> None:
        figures["seen"] = 4

    assert not harness.check("first", fails)
    harness.check("second", skipped)
    assert harness.check("third", passes)
    assert harness.summary() == 1
    told = capsys.readouterr()
    assert "it is another" in told.out
    assert "Traceback" in told.err
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [(outcome["name"], outcome["status"]) for outcome in written] == [
        ("first", "failed"),
        ("second", "skipped"),
        ("third", "ok"),
    ]
    assert written[0]["figures"] == {"seen": 3}


def test_what_the_time_does_not_allow_is_no_success() -> None:
    harness = Harness(None, budget_s=60, limit_s=1)

    def hangs(figures: Figures) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pass

    assert not harness.check("hangs", hangs)
    harness.budget_s = 0
    assert not harness.check("late", hangs)
    assert [outcome.status for outcome in harness.outcomes] == ["failed", "out of time"]
    assert harness.summary() == 1
