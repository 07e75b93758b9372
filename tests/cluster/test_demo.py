"""The demo as a whole, small: its pages are linked, its first night is quiet and the foreign one alarms on purpose."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from cluster import output
from cluster.demo import DemoSummary, _fresh, run_demo
from cluster.preflight import DEMO_MARKER
from pipelines.errors import InputError
from tests.cluster.test_on_a_terminal import assert_reads_well
from tests.servers import clean_environment
from tests.terminal import Shown, on_terminal

FEWEST_FILMS = 50
"""Fewer say nothing about drift, tonight or among those of validation."""


SMALL = """
import sys
from cluster import output
from cluster.demo import run_demo

output.set_up_logging()
made = run_demo(sys.argv[1], patients=160, night_patients=60, trials=2, epochs=2, time_budget_s=120, widths=(96, 144))
output.show(made, as_json=True)
"""
"""What `rayscan demo` does, on fewer films."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    folder: Path
    summary: DemoSummary
    terminal: Shown

    @property
    def index(self) -> str:
        return Path(self.summary.open).read_text()

    def runs(self) -> list[dict[str, object]]:
        """Their records, the first run first."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("scores/runs/*/run.json"))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    environment = clean_environment() | {
        "TERM": "xterm-256color",
        "RAYSCAN_PATIENT_SECRET": "the same patients validate in every run",
        "RAYSCAN_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    shown = on_terminal([sys.executable, "-c", SMALL, str(folder)], env=environment, piped_stdout=True)
    assert shown.exit_code == 0, shown.text
    return Demo(folder=folder, summary=DemoSummary(**json.loads(shown.stdout)), terminal=shown)


def test_on_a_terminal_it_can_be_read(demo: Demo) -> None:
    assert_reads_well(demo.terminal, 80)
    assert "best" in demo.terminal.sent


def test_every_link_of_the_index_leads_to_a_page_in_the_folder(demo: Demo) -> None:
    assert demo.summary.open == str(demo.folder / "index.html")
    links = re.findall(r'href="([^"]*)"', demo.index)
    assert len(links) == len(set(links))
    # relative, so that the folder can be moved
    assert {demo.folder / link for link in links} == set(demo.folder.glob("*.html")) - {demo.folder / "index.html"}
    assert all((demo.folder / link).read_text().startswith("<!doctype html>") for link in links)


def test_the_index_loads_nothing_and_says_what_it_is_not(demo: Demo) -> None:
    assert set(re.findall(r'src="(\w+):', demo.index)) == {"data"}
    assert "rayscan assists triage; it is not a diagnosis." in demo.index
    assert "generated" in demo.index


def test_the_night_like_the_training_films_is_quiet_and_the_foreign_one_alarms(demo: Demo) -> None:
    night, again, foreign = demo.runs()
    for record in (night, foreign):
        counts = record["counts"]
        assert isinstance(counts, dict)
        assert counts["scored"] >= FEWEST_FILMS
        assert counts["unreadable"] == 7
        assert counts["failed"] == 0
    assert night["drift_level"] == "ok"
    assert again["planned"] == 0
    assert foreign["drift_level"] == "alarm"


def test_the_alarm_is_said_to_be_on_purpose(demo: Demo) -> None:
    assert demo.summary.night_drift == "ok"
    assert re.match("ALARM: .*brightness", demo.summary.foreign_drift)
    assert demo.summary.foreign_drift.endswith("on purpose: its films come from another scanner")
    assert "on purpose" in demo.index
    assert 'class="level alarm"' in demo.index


def test_the_nights_have_three_formats_and_no_labels(demo: Demo) -> None:
    for night in ("night", "foreign"):
        kinds = {path.suffix for path in (demo.folder / night).glob("20??/??/*")}
        assert kinds == {".jpeg", ".png", ".dcm"}
        assert not (demo.folder / night / "labels.csv").exists()


def test_the_index_is_the_last_thing_a_person_reads(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    output.show(demo.summary, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["open", str(demo.folder / "index.html")]
    output.show(demo.summary, as_json=True)
    assert json.loads(capsys.readouterr().out)["open"] == str(demo.folder / "index.html")


def test_a_rerun_empties_a_folder_that_a_demo_made(tmp_path: Path) -> None:
    (tmp_path / DEMO_MARKER).touch()
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "film.jpeg").touch()
    assert [path.name for path in _fresh(tmp_path).iterdir()] == [DEMO_MARKER]


def test_a_folder_with_strange_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("two years of work")
    with pytest.raises(InputError, match="give --out another folder"):
        run_demo(str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "two years of work"
