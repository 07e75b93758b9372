"""Every verb as a person at a terminal meets it: it ends well, and what it leaves on the screen can be read."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers import clean_environment
from tests.terminal import Shown, on_terminal
from tests.tuning.films import write_dataset

SIZES = [(80, 24), (140, 50)]
NATIVE = re.compile(r"\w+\.cc:\d+")
"""How the lines of Ray's C++ code are told."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return clean_environment() | {"TERM": "xterm-256color", "RAYSCAN_CACHE": str(tmp_path / "cache")}


def assert_reads_well(shown: Shown, columns: int) -> None:
    assert shown.exit_code == 0, shown.text
    assert "Traceback" not in shown.text
    assert not NATIVE.search(shown.sent), shown.text
    assert max(len(line) for line in shown.lines) <= columns
    # The cursor is shown again, and a prompt would stand on a line of its own.
    assert shown.sent.rfind("\x1b[?25h") >= shown.sent.rfind("\x1b[?25l")
    assert re.sub(r"\x1b\[0m$", "", shown.sent).endswith("\n")  # colorama, which Ray brings, resets the colour last


@pytest.mark.parametrize("size", SIZES)
def test_a_search(rayscan_command: str, environment: Mapping[str, str], tmp_path: Path, size: tuple[int, int]) -> None:
    write_dataset(str(tmp_path / "dataset"))
    shown = on_terminal(
        [rayscan_command, "tune", "dataset", "--out", "study", "--trials", "3", "--epochs", "1", "--family", "mlp"],
        env=environment,
        cwd=tmp_path,
        size=size,
    )
    assert_reads_well(shown, size[0])
    assert "best" in shown.text
