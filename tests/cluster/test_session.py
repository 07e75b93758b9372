"""`ray_session` as a process meets it: whose code the workers run, which Ray it joins, how Ctrl-C ends it."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import session, source
from cluster.session import ray_session as open_session
from cluster.session import twice_if_slow
from models.errors import InputError, RayscanError
from tests.cluster.ray_head import Head, alive, environment, processes_below, wait_for
from tests.servers import free_port

DRIVER = """
import json, logging, os, sys, threading
from cluster import session, source
from cluster.session import ray_session

try:
    with ray_session(cpus=2, dashboard=False, working_on="test") as session:
        import ray
        from ray._private.utils import push_error_to_driver
        from ray._private.worker import global_worker

        @ray.remote
        def look():
            import models
            hashed = source.source_hash(source.package_folders())
            return {"models": models.__file__, "hash": hashed, "env": dict(os.environ)}

        told = threading.Event()
        logging.getLogger("rayscan").addFilter(lambda record: "a node is lost" not in record.getMessage() or told.set())
        push_error_to_driver(global_worker, "node", "a node is lost\\nwhy")
        told.wait(30)
        seen = ray.get(look.remote()) | {"address": session.address, "cpus": session.cpus}
        seen["session"] = ray._private.worker._global_node.get_session_dir_path()
        try:  # begins before the test can know that it may send SIGINT
            print(json.dumps(seen), flush=True)
            threading.Event().wait()
        finally:
            print("closing", flush=True)
            print("told" if told.is_set() else "not told", file=sys.stderr)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_no_package_of_this_environment_slows_the_start_of_rays_processes() -> None:
    """Ray imports jsonschema, which imports each checker of formats it finds; that of IRIs takes longer than Ray."""
    loaded = "import ray, sys; print('rfc3987_syntax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True).stdout == b"False\n"


@dataclass(frozen=True)
class Drive:
    """What became of one driver, from its start to Ctrl-C, hit twice."""

    seen: dict[str, Any]
    exit_code: int
    stdout: str
    stderr: str
    processes: dict[int, str]


@pytest.fixture(scope="module")
def drive(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    """A driver started in a folder with a stranger's `models`, on a machine where another Ray runs already."""
    strange = tmp_path_factory.mktemp("strange")
    (strange / "models").mkdir()
    (strange / "models" / "__init__.py").write_text("")
    script = tmp_path_factory.mktemp("script") / "driver.py"
    script.write_text(DRIVER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=strange,
        env={name: value for name, value in head.environment().items() if name != "RAY_TMPDIR"}
        | {"TMPDIR": str(head.folder), "AWS_ENDPOINT_URL": "http://here", "RAYSCAN_PATIENT_SECRET": "known here"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    processes: dict[int, str] = {}
    try:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        processes = processes_below(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        assert process.stdout.readline() == "closing\n"
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        yield Drive(json.loads(line), process.returncode, stdout, stderr, processes)
    finally:
        process.kill()
        process.wait()
        for pid in alive(processes):
            os.kill(pid, signal.SIGKILL)


def test_workers_run_the_drivers_code_whatever_lies_in_its_folder(drive: Drive) -> None:
    assert drive.seen["hash"] == source.source_hash(source.package_folders())
    assert "strange" not in drive.seen["models"]


def test_local_workers_inherit_what_storage_and_patient_keys_need(drive: Drive) -> None:
    assert drive.seen["env"]["AWS_ENDPOINT_URL"] == "http://here"
    assert drive.seen["env"]["RAYSCAN_PATIENT_SECRET"] == "known here"
    assert drive.seen["env"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert drive.seen["env"]["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_ray_says_of_the_lost_goes_to_the_log_and_not_among_the_results(drive: Drive) -> None:
    assert "a node is lost" not in drive.stdout
    assert drive.stderr.endswith("told\n")
    assert "not told" not in drive.stderr


def test_that_workers_end_with_a_stopped_run_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray Data ends its actors so when a run is stopped; Ray says for each of its tasks that it will be tried again."""
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", None)
    session._tell_in_the_log()
    failed = "Task MapWorker(MapBatches(ScoreShard)).submit failed. Infinite retries remain. Error: The actor"
    lines = [f"{failed} is dead because it was killed by `ray.kill`.\n", f"{failed} died: its node was lost.\n"]
    with caplog.at_level("INFO", "rayscan"):
        worker.print_to_stdstream({"lines": lines}, ignore_prefix=True)
    assert [record.getMessage() for record in caplog.records] == [f"Ray: {failed} died: its node was lost."]


def test_a_ray_that_already_runs_here_is_not_joined(drive: Drive, head: Head) -> None:
    known = (head.folder / "ray" / "ray_current_cluster").read_text()
    assert known.endswith(head.address.rpartition(":")[2])  # a bare `ray.init()` would join it
    assert drive.seen["address"].rpartition(":")[2] != head.address.rpartition(":")[2]
    assert drive.seen["cpus"] == 2


def test_what_ray_writes_here_lies_in_a_folder_that_no_other_account_may_enter(drive: Drive, head: Head) -> None:
    around = Path(drive.seen["session"]).parents[1]
    assert around == head.folder / f"rayscan-{os.getuid()}"
    assert stat.S_IMODE(around.stat().st_mode) == 0o700


def test_a_folder_of_another_account_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    try:
        (place / f"rayscan-{os.getuid()}").symlink_to(tmp_path)  # a folder of ours, but a link somebody else may turn
        with pytest.raises(InputError, match="belongs to another account"):
            session._private_folder()
    finally:
        shutil.rmtree(place)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 40)))
    assert session._private_folder() is None, "too long for Ray's sockets"


def test_ctrl_c_twice_ends_the_driver_and_all_its_processes(drive: Drive) -> None:
    assert drive.exit_code == 130, drive.stderr
    assert "Traceback" not in drive.stderr
    assert len(drive.processes) > 3
    wait_for(lambda: alive(drive.processes) == [], 10)


def test_a_shadowed_package_is_named(tmp_path: Path) -> None:
    stranger = tmp_path / "tuning"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("")
    code = "from cluster.session import ray_session\nwith ray_session(): pass"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("models.errors.InputError: `tuning` is imported from")
    assert str(stranger) in last


def test_the_hash_follows_every_byte_of_code_and_no_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.py").write_text("one = 1\n")
    before = source.source_hash({"models": folder})
    (folder / "__pycache__" / "a.pyc").write_bytes(b"cache")
    assert source.source_hash({"models": folder}) == before
    (folder / "a.py").rename(folder / "b.py")
    renamed = source.source_hash({"models": folder})
    (folder / "b.py").write_text("one = 2\n")
    changed = source.source_hash({"models": folder})
    (folder / "numbers.safetensors").write_bytes(b"which the code computes with")
    assert len({before, renamed, changed, source.source_hash({"models": folder})}) == 4


def test_a_job_refuses_code_other_than_the_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = source.package_folders()
    monkeypatch.setenv(source.SOURCE_HASH_VARIABLE, source.source_hash(folders))
    source.check_packages(folders)
    monkeypatch.setenv(source.SOURCE_HASH_VARIABLE, "0" * 16)
    with pytest.raises(InputError, match="imports other code"):
        source.check_packages(folders)


def test_no_secret_goes_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_ENABLE_STATE_TRACKING", raising=False)
    monkeypatch.delenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://name:word@ceph.example")
    for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAYSCAN_PATIENT_SECRET"):
        monkeypatch.setenv(secret, "secret")
    assert source.cluster_environment() == {"AWS_REGION": "eu-west-1"}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://head:8265", "rayscan submit --address http://head:8265"),
        ("ray://head:10001", "rayscan submit"),
        ("nonsense", "host:port"),
    ],
)
def test_an_address_that_is_no_clusters_is_refused(address: str, says: str) -> None:
    with pytest.raises(InputError, match=says), open_session(address):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="ray start --head"), open_session(f"127.0.0.1:{free_port()}"):
        pass


def test_an_http_address_from_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(InputError, match="unset RAY_ADDRESS"), open_session():
        pass


def test_the_size_of_a_cluster_is_not_ours_to_set() -> None:
    with pytest.raises(InputError, match="--cpus"), open_session("auto", cpus=3):
        pass


@pytest.mark.usefixtures("ray_session")
def test_a_session_inside_a_session_is_the_same_and_stays_open() -> None:
    import ray

    with open_session() as session:
        assert session.cpus == 4
    assert ray.is_initialized()


def test_a_machine_too_busy_to_start_ray_is_one_line_after_a_second_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda **_: None)  # a Ray of other tests may be there
    with pytest.raises(RayscanError, match="is the machine busy"), open_session("local"):
        pass
    assert caplog.text.count("starting it once more") == 1


@pytest.mark.parametrize(("slow", "times"), [(0, 1), (1, 2)])
def test_ray_is_started_again_only_where_it_was_too_slow(slow: int, times: int) -> None:
    tried = []

    def start() -> str:
        tried.append(1)
        if len(tried) <= slow:
            raise Exception("The current node timed out during startup.")
        return "there"

    assert twice_if_slow(start) == "there"
    assert len(tried) == times
