"""What a submitted verb takes along: checked on this machine, at the same relative paths where the job runs."""

from datetime import date
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cluster.cli import app
from cluster.job_files import LARGEST, check_arguments, files_to_send, send
from cluster.jobs import job_name
from models.errors import InputError

NIGHT = '[score]\nmodel = "s3://models/best"\nout = "s3://hospital/scores"\narchive = "s3://hospital/scans"\n'


def verb(name: str) -> TyperCommand:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    assert isinstance(command, TyperCommand)
    return command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "night.toml").write_text(NIGHT)
    (tmp_path / "space.toml").write_text("batch_size = 8\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "jobs/night.toml", "--shard-sise", "3"], "shard-sise"),
        (["s3://hospital/scans", "--model", "s3://models/best"], "Missing parameter: out"),
        (["--config", "jobs/nights.toml"], "no such job file"),
        (["--config", "jobs/night.toml", "--shard-size", "many"], "valid integer"),
    ],
)
def test_wrong_arguments_cost_no_job(here: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(typer.TyperException, match=message):
        check_arguments(verb("score"), "score", arguments)


def test_a_misspelt_key_of_the_job_file_costs_no_job(here: Path) -> None:
    (here / "jobs" / "night.toml").write_text(NIGHT + "shard_sise = 3\n")
    with pytest.raises(typer.TyperException, match="did you mean 'shard_size'"):
        check_arguments(verb("score"), "score", ["--config", "jobs/night.toml"])


def test_a_job_file_of_the_cluster_is_not_looked_for_here(tmp_path: Path) -> None:
    arguments = ["--config", str(tmp_path / "night.toml")]
    assert files_to_send(arguments, check_arguments(verb("score"), "score", arguments)) == []


def test_an_address_of_notify_in_the_job_file_is_not_sent(here: Path) -> None:
    (here / "jobs" / "night.toml").write_text(NIGHT + 'notify = ["json://user:s3cr3t@host"]\n')
    with pytest.raises(InputError, match="RAYSCAN_NOTIFY") as refused:
        check_arguments(verb("score"), "score", ["--config", "jobs/night.toml"])
    assert "s3cr3t" not in str(refused.value)


def test_metrics_are_not_kept_in_the_folder_of_a_job(here: Path) -> None:
    with pytest.raises(InputError, match=r"night\.prom would lie in the job's own folder"):
        check_arguments(verb("score"), "score", ["--config", "jobs/night.toml", "--metrics-file=night.prom"])
    (here / "jobs" / "night.toml").write_text(NIGHT + 'metrics-file = "/var/metrics/night.prom"\n')
    check_arguments(verb("score"), "score", ["--config", "jobs/night.toml"])


def test_the_job_file_and_what_it_names_go_along(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (here / "jobs" / "search.toml").write_text('[tune]\nspace = "space.toml"\ndataset = "s3://hospital/dataset"\n')
    arguments = ["--config", "jobs/search.toml", "--out=s3://hospital/study"]
    paths = files_to_send(arguments, check_arguments(verb("tune"), "tune", arguments))
    assert paths == [Path("jobs/search.toml"), Path("space.toml")]
    there = tmp_path_factory.mktemp("job")
    send(paths, there)
    assert {path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()} == {
        path: path.read_bytes() for path in paths
    }


def test_only_small_files_of_this_folder_and_below_are_sent(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files_to_send(["--space", "default", "--space", str(here / "space.toml")], {}) == []
    assert files_to_send(["--space=space.toml"], {}) == [Path("space.toml")]
    with (here / "space.toml").open("ab") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match="put it into storage"):
        files_to_send(["--space", "space.toml"], {})
    monkeypatch.chdir(here / "jobs")
    with pytest.raises(InputError, match="outside the current folder"):
        files_to_send(["--space", "../space.toml"], {})


@pytest.mark.parametrize(
    ("verb_args", "name"),
    [
        (["score", "s3://hospital/chest/", "--model", "m"], "score chest 2026-11-28"),
        (["score", "--config", "jobs/north.toml"], "score north 2026-11-28"),
        (["doctor"], "doctor 2026-11-28"),
    ],
)
def test_a_job_is_named_for_verb_archive_and_day(verb_args: list[str], name: str) -> None:
    assert job_name(verb_args, date(2026, 11, 28)) == name
