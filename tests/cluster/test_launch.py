"""What the nightly CronJob's pod does, against a Kubernetes that is a small HTTP server."""

import json
import subprocess
import sys
import threading
from ast import literal_eval
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import launch
from cluster.launch import RayJobs, RefusedError, SilentError, follow, made_of, outcome

PATTERN = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "rayscan-night", "uid": "of the pattern", "resourceVersion": "7"},
    "spec": {"entrypoint": "rayscan score", "suspend": True},
    "status": {"jobDeploymentStatus": "Suspended"},
}
JOB = "rayscan-night-29412345"
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}


def failed(code: int) -> dict[str, str]:
    message = (
        f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\nx"
    )
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}


class Kubernetes:
    """RayJobs by name, and the answers it gives instead of them first."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {"rayscan-night": PATTERN}
        self.answers: list[int] = []
        self.tokens: set[str] = set()

    def answer(self, method: str, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.answers:
            return self.answers.pop(0), {"message": "not now"}
        if method == "POST":
            job = json.loads(body)
            name = job["metadata"]["name"]
            if name in self.jobs:
                return 409, {"message": "already exists"}
            self.jobs[name] = job
            return 201, job
        return (200, self.jobs[name]) if name in self.jobs else (404, {"message": "not found"})


@pytest.fixture
def kubernetes() -> Kubernetes:
    return Kubernetes()


@pytest.fixture
def rayjobs(kubernetes: Kubernetes, tmp_path: Path) -> Iterator[Callable[..., RayJobs]]:
    """Makes a client; what it is given runs each time it would wait."""
    (tmp_path / "token").write_text("a token\n")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kubernetes.tokens.add(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, told = kubernetes.answer(self.command, self.path.removeprefix("/rayjobs").strip("/"), body)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        do_POST = do_GET  # noqa: N815 (named by the standard library)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def make(*steps: Callable[[], object]) -> RayJobs:
        left = list(steps)

        def wait(_: float) -> None:
            if left:
                left.pop(0)()

        return RayJobs(url=f"http://127.0.0.1:{server.server_port}/rayjobs", identity=tmp_path, wait=wait)

    yield make
    server.shutdown()
    thread.join()
    server.server_close()


def ends(kubernetes: Kubernetes, name: str, status: dict[str, str]) -> Callable[[], object]:
    return lambda: kubernetes.jobs[name].update(status=status)


def test_a_night_is_made_followed_and_told(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    client = rayjobs(ends(kubernetes, JOB, RUNNING), ends(kubernetes, JOB, SUCCEEDED))
    assert launch.launch(client, "rayscan-night", JOB, "of the job") == 0
    made = kubernetes.jobs[JOB]
    assert made["spec"] == {"entrypoint": "rayscan score"}  # and is not suspended
    assert made["metadata"].keys() == {"name", "labels", "ownerReferences"}
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": JOB, "uid": "of the job"}
    ]
    assert kubernetes.tokens == {"Bearer a token"}


def test_a_second_pod_follows_the_night_of_the_first(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.jobs[JOB] = {"metadata": {"name": JOB}, "status": RUNNING}
    assert launch.launch(rayjobs(ends(kubernetes, JOB, SUCCEEDED)), "rayscan-night", JOB, "u") == 0
    assert set(kubernetes.jobs) == {"rayscan-night", JOB}


@pytest.mark.parametrize(("status", "code"), [(SUCCEEDED, 0), (failed(2), 2)])
def test_what_has_ended_for_good_is_not_repeated(
    kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs], status: dict[str, str], code: int
) -> None:
    kubernetes.jobs[JOB] = {"metadata": {"name": JOB}, "status": status}
    assert launch.launch(rayjobs(), "rayscan-night", JOB, "u") == code
    assert set(kubernetes.jobs) == {"rayscan-night", JOB}


@pytest.mark.parametrize("code", [1, 3])
def test_after_a_failure_the_next_pod_makes_the_next_try(
    kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs], code: int
) -> None:
    kubernetes.jobs[JOB] = {"metadata": {"name": JOB}, "status": failed(code)}
    client = rayjobs(ends(kubernetes, f"{JOB}-2", SUCCEEDED))
    assert launch.launch(client, "rayscan-night", JOB, "u") == 0


def test_tries_have_an_end(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    for number in range(1, 11):
        name = JOB if number == 1 else f"{JOB}-{number}"
        kubernetes.jobs[name] = {"metadata": {"name": name}, "status": failed(1)}
    with pytest.raises(RefusedError, match="has failed 10 times"):
        launch.launch(rayjobs(), "rayscan-night", JOB, "u")


def test_without_a_pattern_it_says_what_to_do(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.jobs.clear()
    with pytest.raises(RefusedError, match="apply the overlay nightly"):
        launch.launch(rayjobs(), "rayscan-night", JOB, "u")


def test_a_busy_api_is_asked_again(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.answers = [503, 401, 429]
    assert rayjobs().get("rayscan-night") == PATTERN


def test_patience_ends(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.answers = [503] * 100
    with pytest.raises(SilentError, match="20 minutes"):
        rayjobs().get("rayscan-night")


def test_a_missing_right_is_told_at_once(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.answers = [403]
    with pytest.raises(RefusedError, match="403 not now"):
        rayjobs().get("rayscan-night")
    assert kubernetes.answers == []


def test_one_that_is_there_already_is_left_as_it_is(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.jobs[JOB] = {"metadata": {"name": JOB}, "status": RUNNING}
    rayjobs().create(made_of(PATTERN, JOB, JOB, "u"))
    assert kubernetes.jobs[JOB]["status"] == RUNNING


def test_a_night_that_somebody_deletes_was_interrupted(kubernetes: Kubernetes, rayjobs: Callable[..., RayJobs]) -> None:
    kubernetes.jobs[JOB] = {"metadata": {"name": JOB}, "status": RUNNING}
    assert follow(rayjobs(lambda: kubernetes.jobs.pop(JOB)), JOB) == 130


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({}, None),
        ({"jobDeploymentStatus": "Initializing"}, None),
        (RUNNING, None),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, None),
        (SUCCEEDED, 0),
        (failed(1), 1),
        (failed(2), 2),
        (failed(3), 3),
        (failed(-9), 137),
        ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "no pods"}, 1),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}, 130),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 130),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "backoffLimit"}, 2),
    ],
)
def test_an_end_has_the_exit_code_of_the_verb(status: dict[str, str], code: int | None) -> None:
    assert outcome({"status": status}) == code


def test_a_name_too_long_for_kuberay_is_refused() -> None:
    with pytest.raises(RefusedError, match="rename the CronJob"):
        made_of(PATTERN, "n" * 48, "n" * 48, "u")


def test_outside_a_pod_it_says_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["launch", "rayscan-night"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert launch.main() == 2
    assert "for the pod of a CronJob" in caplog.text


def test_it_needs_nothing_but_python() -> None:
    """Its pod has 128 MiB: Ray alone would fill them."""
    code = "import sys, cluster.launch; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours = set(literal_eval(loaded)) - sys.stdlib_module_names - {"cluster", "__main__"}
    assert {name for name in ours if not name.startswith(("_", "sitecustomize"))} == set()
