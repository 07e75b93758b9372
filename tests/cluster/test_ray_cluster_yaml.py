"""`ray_cluster.yaml`: valid for the Ray we pin, and safe to bring up once its blanks are filled."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded = yaml.safe_load(FILE.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def start_commands(config: dict[str, Any]) -> list[str]:
    return [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]


def test_is_valid_by_rays_own_schema(config: dict[str, Any]) -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(config, json.loads(schema.read_text()))


def test_rays_own_defaults_never_apply(config: dict[str, Any]) -> None:
    """They open the dashboard to the network and install a nightly Ray."""
    commands = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
    assert all(f"{kind}_commands" in config for kind in commands)


def test_the_dashboard_listens_on_loopback_only(config: dict[str, Any], start_commands: list[str]) -> None:
    assert "0.0.0.0" not in FILE.read_text()
    assert "--dashboard-host=127.0.0.1" in start_commands[0]


def test_every_node_asks_for_the_token_and_has_it(config: dict[str, Any], start_commands: list[str]) -> None:
    assert all("RAY_AUTH_MODE=token" in command for command in start_commands)
    assert all("RAY_USAGE_STATS_ENABLED=0" in command for command in start_commands)
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_every_node_asks_for_imdsv2_and_encrypts_its_disk(config: dict[str, Any]) -> None:
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])
        assert kind["node_config"]["SecurityGroupIds"]


def test_only_the_gpus_are_spot_and_the_head_takes_no_tasks(config: dict[str, Any], start_commands: list[str]) -> None:
    kinds = config["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu"} == {name for name, kind in kinds.items() if kind["labels"]["market"] == "spot"}
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in start_commands[0]
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= config["max_workers"]


def test_rayscan_is_installed_by_the_pinned_versions(config: dict[str, Any]) -> None:
    assert any("--constraint ~/rayscan/constraints.txt ~/rayscan" in command for command in config["setup_commands"])
    assert config["file_mounts"]["/home/ubuntu/rayscan"] == "."


def test_every_section_says_what_it_is_for(config: dict[str, Any]) -> None:
    text = FILE.read_text()
    for section in set(config) - {"head_node_type"}:
        assert re.search(rf"^#.*\n{section}:", text, re.MULTILINE), section


def test_every_blank_is_named_at_the_top() -> None:
    top, _, body = FILE.read_text().partition("\ncluster_name:")
    for line in body.splitlines():
        if "FILL" in line and not line.lstrip().startswith("#"):
            blank = line.strip().removeprefix("Arn: ").partition(":")[0]
            assert blank in top or "instance-profile" in line, line
