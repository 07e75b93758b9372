"""`cluster/deploy/on_premises.yaml` brought up by `ray up` on two machines that only ssh reaches, and down again."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.chaos.growing_cluster import can_make_namespaces
from tests.servers import clean_environment

ROOT = Path(__file__).parents[2]
FILE = Path("cluster", "deploy", "on_premises.yaml")
HEAD, WORKER = "10.77.1.10", "10.77.1.11"
SSHD = """
HostKey /home/hostkey
AuthorizedKeysFile .ssh/authorized_keys
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
APART = ("unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child")
TOOLS = ("/usr/sbin/sshd", "ssh-keygen", "rsync", "pgrep")

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not can_make_namespaces(), reason="only root may make the namespaces it has to run in"),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
]


def _machine(home: Path, folder: Path, stamp: str) -> None:
    """What a machine has before `ray up`: an account, its key, Python; and, to save ten minutes, the libraries."""
    own = home / "rayscan"
    (own / ".ssh").mkdir(parents=True)
    shutil.copy(folder / "key.pub", own / ".ssh" / "authorized_keys")
    shutil.copy(folder / "hostkey", home)
    (home / "sshd.conf").write_text(SSHD)
    (home / "passwd").write_text("rayscan:x:0:0::/home/rayscan:/bin/bash\n" + Path("/etc/passwd").read_text())
    (home / "shadow").write_text("rayscan:*:19000:0:99999:7:::\n" + Path("/etc/shadow").read_text())
    (own / "venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (own / "venv" / name).symlink_to(Path(sys.prefix, name))
    (own / "venv" / ".rayscan-installed").write_text(stamp)
    (own / "t").mkdir()
    (own / ".bashrc").write_text("export RAY_TMPDIR=~/t\n")  # the machines share one /tmp here


def _checkout(folder: Path) -> str:
    """What the operator has; the hash of what `install.sh` would install."""
    checkout = folder / "checkout"
    (checkout / FILE).parent.mkdir(parents=True)
    for name in ("constraints.txt", "cluster/deploy/install.sh"):
        shutil.copy(ROOT / name, checkout / name)
    config = yaml.safe_load((ROOT / FILE).read_text())
    wheel = checkout / next(local for local in config["file_mounts"].values() if local.endswith(".whl"))
    wheel.parent.mkdir()
    wheel.write_bytes(b"a wheel")
    config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    config["auth"]["ssh_private_key"] = str(folder / "key")
    (checkout / FILE).write_text(yaml.safe_dump(config))
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
    (folder / ".rayscan.env").write_text("AWS_REGION=us-east-1\nRAYSCAN_PATIENT_SECRET=0123456789abcdef\n")
    return hashlib.sha256(wheel.read_bytes() + (checkout / "constraints.txt").read_bytes()).hexdigest()


def test_a_cluster_comes_up_outlives_a_worker_and_goes_down() -> None:
    with tempfile.TemporaryDirectory(prefix="om-", dir="/tmp", ignore_cleanup_errors=True) as short:  # sockets
        folder = Path(short)
        for key in ("key", "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        stamp = _checkout(folder)
        path = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}"
        for machine in ("head", "worker"):
            _machine(folder / machine, folder, stamp)
        run = subprocess.run(
            [*APART, "bash", ROOT / "tests/chaos/own_machines.sh", folder, FILE, HEAD, WORKER],
            cwd=folder / "checkout",
            env=clean_environment() | {"HOME": short, "RAY_TMPDIR": short, "PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-15000:]
    told = [line for line in run.stdout.splitlines() if line in {"two nodes", "two nodes again", "no Ray"}]
    assert told == ["two nodes", "two nodes again", "no Ray"]
