"""The files by which a night is scheduled: what they say of exit codes and rights; and their command lines, run."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from cluster.cli import app
from cluster.commands import INTERRUPTED
from cluster.interrupt import TERMINATED
from models.statistics.calibration import Calibration
from pipelines.errors import IncompleteError, InputError, RayscanError
from pipelines.scoring.layout import choose_layout
from pipelines.scoring.score import ScoreShard
from pipelines.storage import Store, open_store
from tests.pipelines.bundles import save_untrained
from tests.pipelines.scoring.archive import write_films
from tests.pipelines.scoring.test_ending import TOTAL, planned
from tests.servers import clean_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
UNITS = DEPLOY / "systemd"
RAYSCAN = "/opt/rayscan/bin/rayscan"
ETC = "/etc/rayscan"


def unit(name: str) -> configparser.ConfigParser:
    """A unit file. No directive of ours is given twice, which this parser would refuse."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read_string((UNITS / name).read_text())
    return parser


SERVICE = unit("rayscan-night@.service")["Service"]


def cron_lines() -> list[str]:
    """The commands of the crontab, without their times and user."""
    lines = (DEPLOY / "cron" / "rayscan-night.cron").read_text().splitlines()
    jobs = [line for line in lines if re.match(r"[\d*]", line)]
    assert all(line.split()[5] == "rayscan" for line in jobs)
    return [line.split(maxsplit=6)[6] for line in jobs]


def commands() -> dict[str, list[str]]:
    """The arguments of every rayscan of the files, for an archive named `night`."""
    found = {name: SERVICE[name].replace("%i", "night").lstrip("-") for name in ("ExecStart", "ExecStartPost")}
    found |= {f"cron {n}": re.findall(rf"{RAYSCAN}[^|>]*", line)[0] for n, line in enumerate(cron_lines())}
    split = {name: shlex.split(line.removesuffix(" 2")) for name, line in found.items()}
    assert {words[0] for words in split.values()} == {RAYSCAN}
    return {name: words[1:] for name, words in split.items()}


@pytest.fixture
def scores(tmp_path: Path) -> Store:
    """What a killed night left: all is written, and not recorded, so that finishing it needs no Ray; and a job file."""
    archive, out = (open_store(str(tmp_path / name)) for name in ("archive", "scores"))
    write_films(archive)
    points = Calibration(temperature=1.0, operating_points={"balanced": 0.5})
    bundle = save_untrained(tmp_path / "bundle", calibration=points).folder
    plan = planned(out, archive, bundle)
    ScoreShard(out.root, plan, choose_layout(1, 0, 1))({"shard": np.array([0])})
    (tmp_path / "night.toml").write_text(
        f'[score]\narchive = "{archive.path}"\nmodel = "{bundle}"\nout = "{out.path}"\nno-report = true\n'
        f'[prune]\nscores = "{out.path}"\nkeep = "90d"\n'
    )
    return out


@pytest.mark.parametrize("name", commands())
def test_each_command_line_is_one_that_rayscan_reads(name: str) -> None:
    """With the job file to copy."""
    verb, *rest = (
        word.replace(f"{ETC}/night.toml", f"{ROOT}/cluster/examples/night.toml") for word in commands()[name]
    )
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    parsed = command.make_context(verb, list(rest)).params
    assert {parsed.get("out"), parsed.get("scores")} == {"s3://hospital/scores", None}


def test_the_service_scores_and_prunes(scores: Store, tmp_path: Path) -> None:
    for name in ("ExecStart", "ExecStartPost"):
        done = CliRunner().invoke(app, [word.replace(ETC, str(tmp_path)) for word in commands()[name]])
        assert done.exit_code == 0, done.stderr
        if name == "ExecStart":
            resumed, new = json.loads(done.stdout)
            assert (sum(resumed["counts"].values()), new["planned"]) == (TOTAL, 0)
    assert scores.exists(f"runs/{resumed['run_id']}/run.json"), "not ninety days old"


def test_the_lines_of_the_crontab_run_in_a_shell(scores: Store, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    journal = tmp_path / "journal"
    scripts = {
        "rayscan": f'echo "as $RAYSCAN_USER"; exec {sys.executable} -c "from cluster.cli import main; main()" "$@"',
        "logger": f'echo "$@" >> {journal}; cat >> {journal}',
    }
    for name, script in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "rayscan.env").write_text("RAYSCAN_USER=nightwatch\n")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    for line in cron_lines():
        mine = line.replace(RAYSCAN, f"{tmp_path}/bin/rayscan").replace(ETC, str(tmp_path))
        environment = {**clean_environment(), "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["/bin/sh", "-c", mine], capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "cron would mail it"
    told = journal.read_text()
    assert "-t rayscan-night" in told
    assert f'"planned": {TOTAL}' in told
    assert '"removed": []' in told
    assert len([1 for chunk in scores.list("runs") for info in chunk if info.key.endswith("/run.json")]) == 2
    assert told.count("as nightwatch") == 2, "the environment file was read"


def test_what_exit_codes_mean_to_systemd() -> None:
    assert SERVICE["Restart"] == "on-failure"
    assert SERVICE["RestartPreventExitStatus"].split() == [str(InputError.exit_code)]
    assert SERVICE["SuccessExitStatus"].split() == [str(INTERRUPTED), str(TERMINATED)]
    again = {str(RayscanError.exit_code), str(IncompleteError.exit_code)}
    assert not again & {*SERVICE["RestartPreventExitStatus"].split(), *SERVICE["SuccessExitStatus"].split()}
    limits = unit("rayscan-night@.service")["Unit"]
    assert (limits["StartLimitBurst"], limits["StartLimitIntervalSec"]) == ("4", "6h")
    assert SERVICE["RestartSec"] == "15min", "four tries fit into the interval, or the limit would never be reached"


def test_the_service_ends_in_good_order_and_has_few_rights() -> None:
    wanted = {
        "Type": "oneshot",
        "User": "rayscan",
        "KillMode": "mixed",
        "TimeoutStopSec": "5min",
        "OOMPolicy": "continue",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "ReadWritePaths": "/var/lib/rayscan /var/cache/rayscan",
    }
    assert {name: SERVICE[name] for name in wanted} == wanted
    assert "RAYSCAN_CACHE=/var/cache/rayscan" in SERVICE["Environment"].split()
    assert SERVICE["EnvironmentFile"] == "-/etc/rayscan/rayscan.env", "no secret stands in a unit"


def test_a_night_that_was_slept_through_is_made_up() -> None:
    timer = unit("rayscan-night@.timer")
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for file in UNITS.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace(RAYSCAN, "/bin/true"))
    names = [str(tmp_path / f"rayscan-night@night.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
