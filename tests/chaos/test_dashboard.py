"""Ray's dashboard during a real night and a real search, as the people who run them see it.

The pictures in `cluster/pictures` are made by

    RAYSCAN_PICTURES=cluster/pictures pytest -m chaos tests/chaos/test_dashboard.py
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.browser import see
from tests.cluster.ray_head import BIN, Head, running_head, running_node
from tests.pipelines.bundles import save_untrained
from tests.tuning.films import write_dataset

pytestmark = pytest.mark.chaos

SIZE = (1400, 900)
HOLDER = """
import sys
import ray

class Other:
    def ready(self):
        return True

ray.init("auto", log_to_driver=False)
other = ray.remote(num_cpus=2)(Other).remote()
ray.get(other.ready.remote())
print("held", flush=True)
sys.stdin.read()
"""
"""A job of somebody else that has all cores of the cluster, until it is killed."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("RAYSCAN_PICTURES")
    return Path(named) if named else tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


@contextmanager
def submitted(head: Head, *verb: str) -> Iterator[str]:
    """A verb at work on the cluster; its job's id. Ended with its client."""
    command = [BIN / "rayscan", "submit", "--stop-on-term", "--address", head.dashboard, "--", *verb]
    client = subprocess.Popen(command, env=head.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert client.stderr
    try:
        for line in client.stderr:
            if named := re.search(rb"submitted (\S+) to", line):
                yield named[1].decode()
                return
        pytest.fail("nothing was submitted")
    finally:
        client.terminate()
        client.communicate(timeout=120)


def seen(head: Head, page: str, picture: Path, *patterns: str, unfold: Sequence[str] = ()) -> str:
    return see(
        f"{head.dashboard}/#/{page}",
        lambda text: all(re.search(wanted, text) for wanted in patterns),
        picture,
        cookies={"ray-authentication-token": head.token.read_text()},
        size=SIZE,
        unfold=unfold,
    )


def test_a_night_is_named_and_its_stages_move(head: Head, pictures: Path) -> None:
    night = head.folder / "chest-archive"
    write_archive(open_store(str(night)), patients=1200, seed=4, size=256, layout="flat", formats=("jpeg", "dicom"))
    save_untrained(head.folder / "bundle")
    score = ("score", str(night), "--model", str(head.folder / "bundle"), "--out", str(head.folder / "scores"))
    with submitted(head, *score, "--shard-size", "8") as job:
        shards = r"score-\d{8}T\d{6}Z-[0-9a-f]{6}\S*\s+[1-9]\d* / \d+\s+RUNNING"  # named for the run
        seen(head, f"jobs/{job}", pictures / "night.png", shards, unfold=["Ray Data Overview"])
        listed = seen(head, "jobs", pictures / "jobs.png", job, "RUNNING")
        assert re.search(r"score chest-archive \d{4}-\d\d-\d\d", listed)
        assert str(head.folder / "scores" / "identity") not in listed


def test_a_search_is_named_and_its_trials_are_actors(head: Head, pictures: Path, tmp_path: Path) -> None:
    write_dataset(str(head.folder / "dataset"))
    search = ("tune", str(head.folder / "dataset"), "--out", str(head.folder / "study"), "--family", "cnn")
    with submitted(head, *search, "--trials", "20", "--epochs", "60", "--no-pruning") as job:
        assert re.search(r"tune dataset \d{4}-\d\d-\d\d", seen(head, "jobs", tmp_path / "jobs.png", job, "RUNNING"))
        seen(head, "actors", pictures / "trials.png", "ImplicitFunc", "ALIVE")


def test_a_job_that_failed_says_why_on_its_page(head: Head, tmp_path: Path) -> None:
    save_untrained(head.folder / "sound")
    nowhere = head.folder / "nowhere"
    score = ("score", str(nowhere), "--model", str(head.folder / "sound"), "--out", str(head.folder / "none"))
    with submitted(head, *score) as job:
        waiting = [BIN / "rayscan", "wait", job, "--address", head.dashboard]
        assert subprocess.run(waiting, env=head.environment(), capture_output=True, check=False).returncode == 2
        seen(head, f"jobs/{job}", tmp_path / "failed.png", "FAILED", rf"rayscan: .*{nowhere}")


def test_a_night_without_room_waits_for_scheduling(head: Head, tmp_path: Path) -> None:
    night = head.folder / "waiting-archive"
    write_archive(open_store(str(night)), patients=4, seed=4, size=64, layout="flat")
    save_untrained(head.folder / "patient")
    score = ("score", str(night), "--model", str(head.folder / "patient"), "--out", str(head.folder / "later"))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=head.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with submitted(head, *score) as job:
            no_shard, none_runs = r"score-\S+\s+0 / 0\s+RUNNING", r"Finished: \d+\s+Waiting for scheduling: [1-9]"
            page = f"jobs/{job}"
            seen(head, page, tmp_path / "waiting.png", no_shard, none_runs, unfold=["Ray Data Overview"])
            assert holder.poll() is None
        holder.kill()


def test_a_node_that_is_gone_is_dead_on_the_cluster_page(head: Head, tmp_path: Path) -> None:
    with running_node(head, "--num-cpus=0"):
        seen(head, "cluster", tmp_path / "two.png", r"ALIVE\s+x 2")
    seen(head, "cluster", tmp_path / "one.png", r"ALIVE\s+x 1\s+DEAD\s+x 1")
