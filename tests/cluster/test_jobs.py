"""Verbs on a real cluster that asks for its token: submit, follow, list, read, stop."""

import getpass
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.jobs import dashboard_address, jobs_address, submit
from models.errors import InputError
from tests.cluster.ray_head import BIN, Head, environment, wait_for
from tests.servers import free_port
from tests.tunnel import Tunnel, tunnel_to

SUBMIT = """
import asyncio, signal, sys
from cluster import jobs
from cluster.output import set_up_logging

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell passes SIGINT on ignored
set_up_logging()
address, on_term, patience, stream, *command = sys.argv[1:]
if stream == "endless":
    from ray.job_submission import JobSubmissionClient

    tail = JobSubmissionClient.tail_job_logs

    async def endless(client, job):
        async for text in tail(client, job):
            yield text
        await asyncio.Event().wait()

    JobSubmissionClient.tail_job_logs = endless
jobs.PATIENCE_SECONDS, jobs.RECONNECT_SECONDS = float(patience), 0.05
try:
    sys.exit(jobs.submit(["probe"], address, command=command, stop_on_term=on_term == "stop"))
except KeyboardInterrupt:
    sys.exit(130)
"""


def rayscan(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "rayscan", *args], env=env, capture_output=True, text=True, check=False)


def submitting(
    head: Head,
    code: str,
    on_term: str = "leave",
    *,
    address: str | None = None,
    patience: float = 60,
    stream: str = "ray",
) -> subprocess.Popen[str]:
    """`submit` in a process of its own, with a command that runs this code on the cluster."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SUBMIT,
            address or head.dashboard,
            on_term,
            str(patience),
            stream,
            sys.executable,
            "-c",
            code,
        ],
        env=head.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_submitted_verb_runs_our_code_on_the_workers_and_ends_with_its_own_exit_code(head: Head) -> None:
    done = rayscan(
        head.environment(), "submit", "--address", head.dashboard, "--", "doctor", f"file://{head.folder}", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (answer,) = (line for line in done.stdout.splitlines() if line.startswith("[{"))
    assert {finding["check"]: finding["state"] for finding in json.loads(answer)}["code"] == "ok"
    assert len([line for line in done.stderr.splitlines() if "INFO" in line]) == 0, done.stderr


def test_the_log_streams_while_the_job_runs_and_its_exit_code_comes_back(head: Head, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    os.mkfifo(seen)
    wait = f"open({str(seen)!r}).read()"  # in the job, until the test saw its first line
    last = "print('last line for', os.environ['RAYSCAN_USER'])\nsys.exit(3)"
    client = submitting(head, f"import os, sys\nprint('first line', flush=True)\n{wait}\n{last}")
    assert client.stdout
    for line in client.stdout:
        if line == "first line\n":
            break
    seen.write_bytes(b"")
    rest, errors = client.communicate(timeout=60)
    assert rest.endswith(f"last line for {getpass.getuser()}@{socket.gethostname()}\n"), errors
    assert client.returncode == 3


def test_the_end_of_a_job_is_not_waited_for_longer_than_it_takes(head: Head) -> None:
    """Ray's own stream of the log goes on for seconds after it; here it would for ever."""
    client = submitting(head, "print('first line', flush=True)\nprint('last line')", stream="endless")
    said, errors = client.communicate(timeout=60)
    assert said.endswith("first line\nlast line\n"), errors
    assert client.returncode == 0


@pytest.fixture
def tunnel(head: Head) -> Iterator[Tunnel]:
    """One to the head's dashboard."""
    with tunnel_to(urlsplit(head.dashboard).port or 0) as tunnel:
        yield tunnel


CUTS = 10


def test_a_tunnel_that_breaks_again_and_again_costs_no_line_and_no_exit_code(
    head: Head, tunnel: Tunnel, tmp_path: Path
) -> None:
    """Each line of the job waits until the one before it was read, and the tunnel was cut then: 2 s each time."""
    code = f"""
import os, sys, threading
for number in range({CUTS}):
    print("line", number, flush=True)
    while not os.path.exists({str(tmp_path)!r} + f"/{{number}}"):
        threading.Event().wait(0.02)
sys.exit(7)
"""
    # A patience that is not enough for all of the cuts together.
    client = submitting(head, code, address=f"http://127.0.0.1:{tunnel.port}", patience=15)
    assert client.stdout
    read = []
    for line in client.stdout:
        if found := re.fullmatch(r"line (\d+)\n", line):
            read.append(int(found[1]))
            tunnel.cut()
            (tmp_path / found[1]).touch()
    _, said = client.communicate(timeout=60)
    assert client.returncode == 7, said
    assert read == list(range(CUTS))


def test_a_tunnel_that_does_not_come_back_ends_with_what_to_do(head: Head, tunnel: Tunnel) -> None:
    at_work = "import signal\nprint('at work', flush=True)\nsignal.pause()"
    client = submitting(head, at_work, address=f"http://127.0.0.1:{tunnel.port}", patience=0.5)
    assert client.stdout
    assert any(line == "at work\n" for line in client.stdout)
    tunnel.close()
    _, said = client.communicate(timeout=60)
    assert "is cut; trying again" in said
    lost = re.search(r"if its cluster lives it goes on, see `rayscan logs -f (rayscan-probe-\S+)`", said)
    assert lost, said
    assert rayscan(head.environment(), "stop", lost[1], "--address", head.dashboard).returncode == 0


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(head: Head) -> None:
    client = submitting(head, "import signal\nprint('at work', flush=True)\nsignal.pause()")
    assert client.stdout
    for line in client.stdout:
        if line == "at work\n":
            break
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=120)
    assert client.returncode == 130
    assert re.search(r"goes on.*`rayscan logs -f rayscan-probe-.*`rayscan stop rayscan-probe-", said)

    def listed() -> dict[str, dict[str, str]]:
        shown = rayscan(head.environment(), "jobs", "--address", head.dashboard, "--json").stdout
        return {job["job"]: job for job in json.loads(shown)}

    (job,) = (name for name, job in listed().items() if job["status"] == "RUNNING")
    assert re.fullmatch(r"rayscan-probe-\d{8}T\d{6}-[0-9a-f]{6}", job)
    assert listed()[job]["verb"] == "probe"
    assert rayscan(head.environment(), "stop", job, "--address", head.dashboard).returncode == 0
    wait_for(lambda: listed()[job]["status"] == "STOPPED", 30)
    waited = rayscan(head.environment(), "wait", job, "--address", head.dashboard)
    assert (waited.returncode, waited.stdout) == (3, ""), waited.stderr  # submitted again, a verb goes on
    assert f"{job} ended as STOPPED" in waited.stderr
    followed = rayscan(head.environment(), "logs", "-f", job, "--address", head.dashboard)
    assert followed.returncode == 3
    assert followed.stdout.endswith("\nat work\n")  # after Ray's own lines
    assert "at work" in rayscan(head.environment(), "logs", job, "--address", head.dashboard).stdout


def test_a_deadline_can_stop_the_job(head: Head) -> None:
    client = submitting(head, "import signal\nprint('at work', flush=True)\nsignal.pause()", "stop")
    assert client.stdout
    for line in client.stdout:
        if line == "at work\n":
            break
    client.send_signal(signal.SIGTERM)
    _, said = client.communicate(timeout=120)
    assert client.returncode == 143, said
    job = re.search(r"stopping (rayscan-probe-\S+): SIGTERM", said)
    assert job, said
    waited = rayscan(head.environment(), "wait", job[1], "--address", head.dashboard)
    assert f"{job[1]} ended as STOPPED" in waited.stderr


def test_the_api_answers_only_to_the_token(head: Head, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=10)
    refused = rayscan(environment(tmp_path), "jobs", "--address", head.dashboard)
    assert refused.returncode == 2
    assert "~/.ray/auth_token" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert dashboard_address(head.dashboard).answers


def test_a_job_nobody_knows_is_wrong_input(head: Head) -> None:
    asked = rayscan(head.environment(), "logs", "no-such-job", "--address", head.dashboard)
    assert asked.returncode == 2
    assert "knows no job no-such-job" in asked.stderr


def test_no_cluster_at_the_address_says_how_to_start_one() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match="ray start --head"):
        submit(["query", "s3://bucket/scores"], address)
    assert not dashboard_address(address).answers
    assert "ray dashboard ray_cluster.yaml" in dashboard_address(address).hint


def test_an_empty_submission_is_wrong_usage() -> None:
    with pytest.raises(InputError, match="name a verb"):
        submit([], "http://127.0.0.1:8265")
    with pytest.raises(InputError, match="leave --no-wait out"):
        submit(["query", "s3://bucket/scores"], wait=False, stop_on_term=True)


def test_a_local_path_is_pointed_out_when_the_cluster_is_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError), caplog.at_level("WARNING", logger="rayscan"):
        submit(["score", "/archive", "--model", "s3://bucket/model"], "http://head.invalid:8265")
    assert [record.args for record in caplog.records] == [("/archive",)]


def test_the_address_comes_from_the_flag_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert jobs_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert jobs_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265/")
    assert jobs_address(None) == "http://head:8265"
    assert jobs_address("https://other") == "https://other"
    with pytest.raises(InputError, match="dashboard"):
        jobs_address("10.0.0.1:6379")
