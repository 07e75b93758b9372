"""An unexpected error: one line for the person, the traceback in a file, exit 1. It is never hidden."""

import logging
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cluster import run_log
from cluster.commands import add_verb
from models.errors import InputError


@pytest.fixture(autouse=True)
def _own_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    run_log.path.cache_clear()
    yield
    run_log.path.cache_clear()


def ran(raises: Callable[[], BaseException], *args: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)

    def work(films: int = 3) -> None:
        raise raises()

    add_verb(app, work)

    return CliRunner().invoke(app, list(args))


def of_a_worker() -> Exception:
    error = RuntimeError("\x1b[36mray::Scoring\x1b[39m and a long traceback of the worker")
    error.cause = ZeroDivisionError("division by zero")  # type: ignore[attr-defined] # as ray.exceptions.RayTaskError
    return error


@pytest.mark.parametrize(
    ("raises", "says"),
    [
        (lambda: TypeError("cannot pickle\nmore lines"), "unexpected TypeError: cannot pickle (test_faults.py, line"),
        (KeyError, "unexpected KeyError:  ("),
        (of_a_worker, "unexpected ZeroDivisionError: division by zero ("),
    ],
)
def test_one_line_and_the_traceback_in_a_file(raises: Callable[[], Exception], says: str) -> None:
    result = ran(raises)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("rayscan: ")
    assert says in line
    file = Path(re.search(r"traceback is in (\S+\.log)", line)[1])  # type: ignore[index]
    assert "Traceback (most recent call last)" in file.read_text()
    assert "in work" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


class WorkerError(InputError):
    """As Ray makes it of an error that a worker raised: of its class, with a traceback for a message."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("ray::Scoring() (pid=7)\n  File ...\nInputError: films: no such folder")
        self.cause = cause


def test_an_error_of_ours_in_a_worker_is_one_line_too() -> None:
    result = ran(lambda: WorkerError(WorkerError(InputError("films: no such folder"))))
    assert (result.exit_code, result.stderr) == (2, "rayscan: films: no such folder\n")


@pytest.mark.parametrize("how", ["--debug", "RAYSCAN_DEBUG"])
def test_debug_prints_the_traceback_and_keeps_the_exit_code(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "RAYSCAN_DEBUG":
        monkeypatch.setenv(how, "1")
    args = [how] if how.startswith("--") else []
    for raises, code in ((lambda: TypeError("why"), 1), (lambda: InputError("films: no such folder"), 2)):
        result = ran(raises, *args)
        assert result.exit_code == code
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("rayscan: ")


def test_an_error_of_ours_is_its_own_line_and_no_file_is_written() -> None:
    result = ran(lambda: InputError("films: no such folder"))
    assert (result.exit_code, result.stderr) == (2, "rayscan: films: no such folder\n")
    assert not run_log.path().read_text()


def test_ctrl_c_is_no_fault() -> None:
    result = ran(KeyboardInterrupt)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_wrong_usage_is_still_told_by_typer() -> None:
    result = ran(KeyboardInterrupt, "--films", "many")
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert "Invalid value" in result.stderr


def test_a_log_that_cannot_be_written_to_the_cache_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", "/proc/nothing-can-be-made-here")
    file = run_log.write_traceback(ValueError("why"))
    try:
        assert "ValueError: why" in file.read_text()
    finally:
        file.unlink()


def test_old_logs_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "logs"
    folder.mkdir(parents=True)
    for number in range(run_log.KEPT + 5):
        (folder / f"20200101T000000-{number:04}.log").touch()
    newest = run_log.path()
    assert len(list(folder.glob("*.log"))) == run_log.KEPT + 1
    assert newest.exists()
    assert not (folder / "20200101T000000-0004.log").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_that_is_only_logged_has_its_traceback_in_the_same_file(debug: bool) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    def work(films: int = 3) -> None:
        try:
            raise ZeroDivisionError("secret")
        except ZeroDivisionError:
            logging.getLogger("rayscan").warning("no page of %d films", films, exc_info=True)

    add_verb(app, work)
    result = CliRunner().invoke(app, ["--debug"] if debug else [])
    assert result.exit_code == 0
    line, *rest = result.stderr.splitlines()
    file = Path(re.search(r"no page of 3 films; the traceback is in (\S+\.log)", line)[1])  # type: ignore[index]
    assert "ZeroDivisionError: secret" in file.read_text()
    assert bool(rest) == debug
