"""`ray_cluster.yaml` brought to a (made-up) EC2 by Ray's own code: what is started, and who may start it.

Moto takes the place of AWS. It knows policies by their actions alone, not by resource and condition, so it shows that
the head's policy names every action that Ray needs, and that the worker's names none of them.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException

from tests.servers import S3Server, moto_server

ROOT = Path(__file__).parents[2]
TAGS = {"ray-node-type": "worker", "ray-node-name": "a node"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """An account with what `ray_cluster.yaml` wants to have filled in."""

    server: S3Server
    config: dict[str, Any]
    """As `ray up` has it once it has looked at the account."""
    credentials: dict[str, dict[str, str]]
    """Of the head and of a worker."""

    def node_config(self, kind: str) -> dict[str, Any]:
        return copy.deepcopy(dict(self.config["available_node_types"][kind]["node_config"]))

    def provider(self, of: str | None = None) -> Any:
        """Ray's own hand on EC2, with the rights of `of`, else of whoever calls `ray up`."""
        credentials = {"aws_credentials": self.credentials[of]} if of else {}
        return AWSNodeProvider(self.config["provider"] | credentials, self.config["cluster_name"])

    def guard(self, *, on: bool) -> None:
        """Let moto judge every call by the caller's policy, or none."""
        requests.post(f"{self.server.endpoint}/moto-api/reset-auth", data=b"0" if on else b"1000000", timeout=10)


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts the key pair it makes there
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep another test's credentials, or ours for others
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with moto_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        ec2 = boto3.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZone="us-east-1a")
        blanks = {
            "subnet-FILL": subnet["Subnet"]["SubnetId"],
            "sg-FILL": ec2.create_security_group(GroupName="rayscan", Description="ours", VpcId=vpc)["GroupId"],
            "ami-FILL": ec2.register_image(Name="rayscan")["ImageId"],
            "FILL": boto3.client("sts").get_caller_identity()["Account"],
        }
        for who in ("head", "worker"):
            iam = boto3.client("iam")
            iam.create_role(RoleName=f"rayscan-{who}", AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=f"rayscan-{who}")
            iam.add_role_to_instance_profile(InstanceProfileName=f"rayscan-{who}", RoleName=f"rayscan-{who}")
        text = (ROOT / "ray_cluster.yaml").read_text()
        for blank, value in blanks.items():
            text = text.replace(blank, value)
        yield Account(
            server=server,
            config=bootstrap_aws(prepare_config(yaml.safe_load(text))),
            credentials={who: _credentials(who) for who in ("head", "worker")},
        )


def _credentials(who: str) -> dict[str, str]:
    """Of somebody who may do the actions of this policy."""
    statements = json.loads((ROOT / "cluster/deploy/aws" / f"{who}-policy.json").read_text())["Statement"]
    allowed = [{"Effect": "Allow", "Action": statement["Action"], "Resource": "*"} for statement in statements]
    iam = boto3.client("iam")
    iam.create_user(UserName=who)
    document = json.dumps({"Version": "2012-10-17", "Statement": allowed})
    iam.put_user_policy(UserName=who, PolicyName=who, PolicyDocument=document)
    key = iam.create_access_key(UserName=who)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def test_what_starts_is_what_the_file_says_and_only_the_head_may_start_it(account: Account) -> None:
    """One test, because a made-up account is slow to make."""
    kinds = list(account.config["available_node_types"])
    for kind in kinds:
        account.provider().create_node(account.node_config(kind), TAGS | {"ray-node-name": kind}, 1)
    found = {tag["Value"]: node for node in _instances() for tag in node["Tags"] if tag["Key"] == "Name"}
    profiles = {kind: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for kind, node in found.items()}
    assert profiles == {"cpu": "rayscan-worker", "gpu": "rayscan-worker", "head": "rayscan-head"}
    assert {kind for kind, node in found.items() if node.get("InstanceLifecycle") == "spot"} == {"gpu"}
    for node in found.values():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert "PublicIpAddress" not in node
        assert [group["GroupName"] for group in node["SecurityGroups"]] == ["rayscan"]
    assert all(disk["Encrypted"] for disk in boto3.client("ec2").describe_volumes()["Volumes"])

    account.guard(on=True)
    with pytest.raises(NodeLaunchException, match="not authorized to perform: ec2:RunInstances"):
        account.provider("worker").create_node(account.node_config("cpu"), TAGS, 1)
    head = account.provider("head")
    (started,) = head.create_node(account.node_config("cpu"), TAGS, 1)
    assert started in head.non_terminated_nodes({})
    boto3.client("ec2", **account.credentials["head"]).create_tags(
        Resources=[started], Tags=[{"Key": "ray-node-status", "Value": "up-to-date"}]
    )
    head.terminate_node(started)
    account.guard(on=False)
    ended = [node["InstanceId"] for node in _instances() if node["State"]["Name"] in ("shutting-down", "terminated")]
    assert ended == [started]


def _instances() -> list[dict[str, Any]]:
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    return [node for reservation in reservations for node in reservation["Instances"]]
