"""`ray_cluster.yaml` and its sibling for machines of one's own: Ray takes them, and nothing in them stands open."""

import copy
import json
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._common.utils import try_to_create_directory
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS = ROOT / "ray_cluster.yaml"
ON_PREMISES = ROOT / "cluster" / "deploy" / "on_premises.yaml"
POLICIES = ROOT / "cluster" / "deploy" / "aws"
FETCHES = re.compile(r"pip install|curl|wget|uv |apt|git clone|docker pull|aws s3|https?://")
MOUNTED = {"auth_token", ".rayscan.env", "constraints.txt", "install.sh"}


def load(file: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(file.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(params=[AWS, ON_PREMISES], ids=["aws", "on_premises"])
def file(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def config(file: Path) -> dict[str, Any]:
    return load(file)


@pytest.fixture
def aws() -> dict[str, Any]:
    return load(AWS)


@pytest.fixture
def start_commands(config: dict[str, Any]) -> list[str]:
    return [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]


def policy(of: str) -> list[dict[str, Any]]:
    statements = json.loads((POLICIES / f"{of}-policy.json").read_text())["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return list(statements)


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in statement["Action"]}


def test_rays_folder_lies_where_no_other_account_may_enter(config: dict[str, Any], tmp_path: Path) -> None:
    """The command as it stands, twice, and then what `ray start` does to its folder."""
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    tmp.mkdir()
    for _ in range(2):
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_TMPDIR": str(tmp)}
        subprocess.run(["/bin/sh", "-euc", config["setup_commands"][2]], env=environment, check=True)
    try_to_create_directory(str(tmp / "ray"))
    assert stat.S_IMODE((tmp / "ray").stat().st_mode) == 0o777
    assert (tmp / "ray").resolve() == home / ".rayscan" / "ray"
    assert stat.S_IMODE((home / ".rayscan").stat().st_mode) == 0o700
    assert not list((home / ".rayscan" / "ray").iterdir())


def test_ray_is_found_by_its_name_where_ray_down_calls_it(tmp_path: Path) -> None:
    """`ray down` runs `ray stop` in such a shell on the head, and takes its failure for an end."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "ray").write_text("#!/bin/sh\necho stopped\n")
    (tmp_path / "venv" / "bin" / "ray").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for _ in range(2):
        subprocess.run(["/bin/sh", "-euc", load(ON_PREMISES)["setup_commands"][3]], env=environment, check=True)
    shell = ["bash", "--login", "-c", "-i", "source ~/.bashrc; ray stop"]
    assert subprocess.run(shell, env=environment, check=True, capture_output=True, text=True).stdout == "stopped\n"
    assert (tmp_path / ".bashrc").read_text().count("\n") == 1


def test_machines_of_ones_own_have_the_autoscaler_that_starts_them() -> None:
    """Ray's second starts no worker there (seen on Ray 2.60; ray-project/ray issue 59905)."""
    head, worker = (load(ON_PREMISES)[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert "RAY_enable_autoscaler_v2=0" in head
    assert "autoscaler" not in worker


def test_ray_takes_it_as_ray_up_does(config: dict[str, Any]) -> None:
    """Ray's own schema and checks, after its own defaults: what `ray up` does before it asks a cloud for anything."""
    validate_config(prepare_config(copy.deepcopy(config)))


def test_rays_own_defaults_never_apply(config: dict[str, Any]) -> None:
    """They open the dashboard to the network and install a nightly Ray."""
    prepared = prepare_config(copy.deepcopy(config))
    commands = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
    assert all(f"{kind}_commands" in config for kind in commands)
    for kind in ("head_setup", "worker_setup"):  # Ray puts the common commands first
        assert prepared[f"{kind}_commands"] == config["setup_commands"] + config[f"{kind}_commands"]
    assert prepared["file_mounts"] == config["file_mounts"]


def test_the_dashboard_listens_on_loopback_only(file: Path, start_commands: list[str]) -> None:
    assert "0.0.0.0" not in file.read_text()
    assert "--dashboard-host=127.0.0.1" in start_commands[0]


def test_every_node_asks_for_the_token_and_has_it(config: dict[str, Any], start_commands: list[str]) -> None:
    assert all("RAY_AUTH_MODE=token" in command for command in start_commands)
    assert all("RAY_USAGE_STATS_ENABLED=0" in command for command in start_commands)
    home = "/home/" + config["auth"]["ssh_user"]
    assert config["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token ~/.rayscan.env"


def test_no_secret_stands_on_a_command_line(file: Path) -> None:
    """Whoever is on the node sees it in `ps`, and Ray keeps the commands in a file of the head."""
    commands = [command for key, part in load(file).items() if key.endswith("_commands") for command in part]
    assert not [command for command in commands if re.search(r"(SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*=", command)]


def test_workers_do_not_keep_the_secret_of_the_patient_keys(config: dict[str, Any], tmp_path: Path) -> None:
    """The command is run; Ray runs it before it starts a worker, and not on the head."""
    (tmp_path / ".rayscan.env").write_text(
        "AWS_REGION=us-east-1\nRAYSCAN_PATIENT_SECRET=0123456789abcdef\n export RAYSCAN_PATIENT_SECRET\n"
        "RAYSCAN_DEBUG=1\n"
    )
    for command in config["worker_setup_commands"]:
        subprocess.run(["/bin/sh", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / ".rayscan.env").read_text() == "AWS_REGION=us-east-1\nRAYSCAN_DEBUG=1\n"
    assert not config["head_setup_commands"]
    assert "unset RAYSCAN_PATIENT_SECRET;" in config["worker_start_ray_commands"][-1], "Ray's repair skips the setup"


def test_nodes_get_named_files_and_never_the_checkout(config: dict[str, Any]) -> None:
    """In a checkout where somebody worked lie films, scores and .env."""
    wheel = "rayscan-{version}-py3-none-any.whl".format(
        **tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    )
    assert {Path(remote).name for remote in config["file_mounts"]} == MOUNTED | {wheel}
    for remote, local in config["file_mounts"].items():
        assert remote.startswith(f"/home/{config['auth']['ssh_user']}/")
        assert Path(remote).name == Path(local).name
        if not local.startswith(("~", "dist/")):
            assert (ROOT / local).is_file(), local
    assert config["file_mounts"][next(path for path in config["file_mounts"] if wheel in path)] == f"dist/{wheel}"
    assert not config.get("cluster_synced_files")


def test_what_is_set_up_is_what_is_mounted(config: dict[str, Any]) -> None:
    home = "/home/" + config["auth"]["ssh_user"]
    install = config["setup_commands"][1].split()
    assert install[0] == "sh"
    assert all(path.replace("~", home) in config["file_mounts"] for path in install[1:4])
    assert install[4] == "~/venv"
    assert [Path(path).suffix for path in install[1:4]] == [".sh", ".whl", ".txt"]


def test_nothing_is_fetched_from_where_private_subnets_do_not_reach(aws: dict[str, Any]) -> None:
    commands = [command for key, part in aws.items() if key.endswith("_commands") for command in part]
    assert not [command for command in commands if FETCHES.search(command)]
    assert len(aws["setup_commands"][1].split()) == 5, "a package index is given"


def test_a_driver_runs_on_the_head_and_the_head_takes_no_tasks(
    config: dict[str, Any], start_commands: list[str]
) -> None:
    assert "--num-cpus=0" in start_commands[0]
    assert not [name for name in config if "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES" in str(config[name])]


def test_every_node_says_its_market_and_only_gpus_are_spot(aws: dict[str, Any]) -> None:
    kinds = aws["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu"} == {name for name, kind in kinds.items() if kind["labels"]["market"] == "spot"}
    assert aws["head_node_type"] not in spot
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["head"]["max_workers"] == 0
    assert sum(kind["max_workers"] for kind in kinds.values()) <= aws["max_workers"]
    for command in [load(ON_PREMISES)[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]:
        assert "--labels=market=on-premises,role=" in command


def test_every_node_asks_for_imdsv2_and_encrypts_its_disk(aws: dict[str, Any]) -> None:
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])
        assert kind["node_config"]["SecurityGroupIds"]
    assert aws["provider"]["use_internal_ips"]
    assert not aws["provider"]["cache_stopped_nodes"]


def test_workers_do_not_hold_the_profile_of_the_head(aws: dict[str, Any]) -> None:
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        for name, kind in aws["available_node_types"].items()
    }
    assert profiles == {"cpu": "rayscan-worker", "gpu": "rayscan-worker", "head": "rayscan-head"}


def test_the_workers_policy_reaches_the_store_and_nothing_else() -> None:
    statements = policy("worker")
    assert actions(statements) == {
        *("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"),
    }
    resources = [resource for statement in statements for resource in statement["Resource"]]
    assert "*" not in resources
    writes = [statement for statement in statements if actions([statement]) & {"s3:PutObject", "s3:DeleteObject"}]
    assert [statement["Resource"] for statement in writes] == [["arn:aws:s3:::FILL-scores/*"]], "the archive stays"


def test_the_heads_policy_starts_and_ends_workers_of_this_cluster_only(aws: dict[str, Any]) -> None:
    statements = policy("head")
    assert not [action for action in actions(statements) if "*" in action]
    assert actions(statements) == {
        *("ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "iam:PassRole"),
    }
    by_name = {statement["Sid"]: statement for statement in statements}
    assert [name for name, statement in by_name.items() if statement["Resource"] == "*"] == ["SeeTheNodes"]
    workers = [kind for name, kind in aws["available_node_types"].items() if name != aws["head_node_type"]]
    profiles = {kind["node_config"]["IamInstanceProfile"]["Arn"] for kind in workers}
    assert by_name["StartWorkersOfThisClusterOnly"]["Condition"] == {
        "StringEquals": {
            "aws:RequestTag/ray-cluster-name": aws["cluster_name"],
            "ec2:InstanceType": [kind["node_config"]["InstanceType"] for kind in workers],
            "ec2:MetadataHttpTokens": "required",
        },
        "ArnEquals": {"ec2:InstanceProfile": profiles.pop()},
    }
    assert not profiles
    assert by_name["TagAndEndThoseOfThisClusterOnly"]["Condition"] == {
        "StringEquals": {"ec2:ResourceTag/ray-cluster-name": aws["cluster_name"]}
    }
    assert by_name["GiveThemTheWorkersRoleOnly"]["Resource"].endswith(":role/rayscan-worker")
    for statement in statements:
        own_region = [
            part for part in [statement["Resource"]] if isinstance(part, str) and part.startswith("arn:aws:ec2")
        ]
        assert all(f":{aws['provider']['region']}:" in part for part in own_region)


def test_every_section_says_what_it_is_for(file: Path) -> None:
    text = file.read_text()
    for section in set(load(file)) - {"head_node_type"}:
        assert re.search(rf"^#.*\n{section}:", text, re.MULTILINE), section


def test_every_blank_is_named_at_the_top(file: Path) -> None:
    top, _, body = file.read_text().partition("\ncluster_name:")
    section = ""
    for line in body.splitlines():
        if line and line[0] not in " #":
            section = line.partition(":")[0]
        if "FILL" in line and not line.lstrip().startswith("#"):
            blank = line.strip().partition(":")[0]
            assert blank in top or section in top, line
