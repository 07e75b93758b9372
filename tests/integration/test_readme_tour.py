"""The README's tour as its reader types it: line by line, from an empty folder, with the relative paths it prints.

Two things are not as printed: the search has three trials and not a quarter of an hour, and the films and the bucket
are made here.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import boto3
import pytest

from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.cluster.test_on_a_terminal import NATIVE, assert_reads_well
from tests.servers import S3Server, clean_environment
from tests.terminal import on_terminal

README = Path(__file__).parents[2] / "README.md"
BUDGET = ("--time-budget 15m", "--trials 3 --epochs 2")


def tour() -> list[str]:
    """The lines of the section, without their comments."""
    section = README.read_text().partition("## Five minutes on real films")[2].partition("\n## ")[0]
    lines = [line.strip() for line in re.findall(r"^    (.+)$", section, flags=re.MULTILINE)]
    assert lines[0] == "source .venv/bin/activate"  # here the tests' own environment comes first in PATH
    return [re.sub(r"\s+# .*", "", line).replace(*BUDGET) for line in lines[1:]]


@pytest.fixture
def environment(s3: S3Server, tmp_path: Path) -> dict[str, str]:
    """A reader's shell, with credentials of a server that holds s3://hospital/night."""
    environment = clean_environment() | s3.environment() | {"RAYSCAN_CACHE": str(tmp_path / "cache")}
    client = boto3.client("s3")
    if "hospital" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket="hospital")
        night = open_store("s3://hospital/night")
        write_archive(night, patients=15, seed=4, size=96, layout="flat", formats=("jpeg", "dicom"), broken=True)
    return environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the reader stands: films, and nothing else."""
    home = tmp_path / "home"
    write_archive(open_store(str(home / "films")), patients=40, seed=3, size=96)
    return home


def test_every_other_line_on_a_terminal_the_others_through_a_pipe(environment: Mapping[str, str], folder: Path) -> None:
    def on_screen(line: str) -> str:
        shown = on_terminal(
            ["/bin/bash", "-c", line], env={**environment, "TERM": "xterm-256color"}, cwd=folder, size=(80, 24)
        )
        assert_reads_well(shown, 80)
        return shown.text

    def through_a_pipe(line: str) -> str:
        shown = subprocess.run(
            ["/bin/bash", "-c", line], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        said = shown.stdout + shown.stderr
        assert shown.returncode == 0, said
        assert "Traceback" not in said
        assert "\x1b" not in said
        assert not NATIVE.search(said)
        return said

    ways = itertools.cycle([on_screen, through_a_pipe])
    shown = {line: typed(line) for line, typed in zip(tour(), ways, strict=False)}
    said = {line.split()[1]: text for line, text in shown.items()}
    assert {"catalog", "audit", "prepare", "tune", "report", "evaluate", "score", "query"} == set(said)
    assert "patients" in said["catalog"]
    assert "trial 0 baseline majority complete" in said["tune"]
    assert "scored" in said["score"]
    assert "empty_file" in said["query"]
    for page in ("audit.html", "study.html", "evaluation.html"):
        assert "not a diagnosis" in (folder / page).read_text()
    assert (folder / "work" / "study" / "best" / "bundle.json").exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["films", "work", "audit.html", "study.html", "evaluation.html"]
    )
