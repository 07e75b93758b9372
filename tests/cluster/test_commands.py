"""A verb's options, and a group of them that it takes as one parameter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cluster.commands import add_verb
from cluster.options import Config


@dataclass(frozen=True, kw_only=True)
class Training:
    epochs: Annotated[int | None, typer.Option(help="Passes over the films.")] = None
    rate: float = 0.1


def ran(*args: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)

    def work(films: str, training: Training, seed: int = 3, config: Config = None) -> None:
        print(films, training, seed)

    add_verb(app, work)
    return CliRunner().invoke(app, list(args))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("a",), "a Training(epochs=None, rate=0.1) 3\n"),
        (("a", "--epochs", "7", "--seed", "5"), "a Training(epochs=7, rate=0.1) 5\n"),
    ],
)
def test_a_group_of_options_arrives_as_one_value(args: tuple[str, ...], says: str) -> None:
    assert ran(*args).stdout == says


def test_a_job_file_sets_the_options_of_a_group(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text("[work]\nepochs = 7\nrate = 0.5\n")
    assert ran("a", "--config", str(job), "--rate", "0.2").stdout == "a Training(epochs=7, rate=0.2) 3\n"


def test_help_lists_the_options_in_the_order_of_the_parameters() -> None:
    shown = ran("--help").stdout
    places = [shown.index(f"--{name}") for name in ("epochs", "rate", "seed", "config", "debug")]
    assert places == sorted(places)
    assert "Passes over the films." in shown
