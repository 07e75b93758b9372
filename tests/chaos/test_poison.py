"""A film that kills every process which decodes it does not stop the night."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.table.query import ask
from tests.deadly import DEADLY, deadly_environment
from tests.nights import make_night

pytestmark = pytest.mark.chaos


def test_a_deadly_film_costs_its_own_row_only(rayscan_command: str, tmp_path: Path) -> None:
    night = make_night(rayscan_command, tmp_path, films=40, side=64)
    night.archive.put("17-deadly.png", DEADLY["segfault"])
    night.archive.put("30-deadly.png", DEADLY["exit"])
    path = str(deadly_environment(tmp_path))
    night = replace(night, environment={**night.environment, "PYTHONPATH": path})

    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == {"rows": 42, "scans": 42, "runs": 1}
    assert night.statuses() == {("scored", None): 40, ("failed", "crashed"): 2}
    crashed = ask(night.scores.root, "SELECT uri FROM latest WHERE reason = 'crashed' ORDER BY uri").to_pylist()
    assert [os.path.basename(row["uri"]) for row in crashed] == ["17-deadly.png", "30-deadly.png"]
