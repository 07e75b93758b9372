"""What the nightly CronJob's pod runs (`python -m cluster.launch PATTERN`): a RayJob made, followed, and its end told.

PATTERN is a suspended RayJob of the same namespace. The new one has its spec, the name of the Job this pod belongs to,
and that Job as its owner, so it goes when the Job goes. The pod waits for it, so that the CronJob's Forbid covers the
whole night, and ends with the verb's own exit code as far as KubeRay tells it.

A pod that is started again (its node was drained) finds the RayJob by its name and follows it. One that was started
because a try failed makes the next, under the name with -2. Only the standard library is used, so 128 MiB are enough,
and of Kubernetes two things are asked: `get` and `create` of RayJobs.
"""

import json
import logging
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("rayscan")

IDENTITY: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts a pod's token, its namespace and the authority of its API."""
LONGEST_NAME: Final = 47
"""Of a RayJob, as KubeRay checks it."""
MOST_TRIES: Final = 10
POLL_SECONDS: Final = 15
PATIENCE_SECONDS: Final = 1200
"""For an API that does not answer: it may be upgraded at night."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
_ENDED = ("Complete", "Failed", "ValidationFailed")
_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
_PASSING = frozenset({401, 408, 429})
"""Refusals that may pass: a token is renewed while it is read, an API is busy. With all of 500 and above."""


class RefusedError(Exception):
    """Kubernetes says no, and will say so again."""


class SilentError(Exception):
    """Kubernetes does not answer."""


@dataclass(frozen=True, kw_only=True)
class RayJobs:
    """The RayJobs of a namespace."""

    url: str
    """Of their collection."""
    identity: Path = IDENTITY
    context: ssl.SSLContext | None = None
    wait: Callable[[float], object] = field(default=time.sleep)

    def get(self, name: str) -> dict[str, Any] | None:
        """None when there is none of the name."""
        return self._ask("GET", f"{self.url}/{name}", absent=404)

    def create(self, job: dict[str, Any]) -> None:
        """Leaves one that is there already as it is: another pod was here before."""
        self._ask("POST", self.url, job, absent=409)

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None, *, absent: int) -> dict[str, Any] | None:
        """The answer; None for the status `absent`. Raises `RefusedError`, and `SilentError` after some patience."""
        for _ in range(PATIENCE_SECONDS // POLL_SECONDS):
            try:
                return self._ask_once(method, url, body)
            except urllib.error.HTTPError as error:
                if error.code == absent:
                    return None
                if error.code < 500 and error.code not in _PASSING:
                    raise RefusedError(f"{method} {url}: {error.code} {_reason(error)}") from error
                log.warning("Kubernetes answers %d; asking again", error.code)
            except OSError as error:
                log.warning("Kubernetes does not answer (%s); asking again", error)
            self.wait(POLL_SECONDS)
        raise SilentError(f"Kubernetes has not answered for {PATIENCE_SECONDS // 60} minutes: {url}")

    def _ask_once(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        token = (self.identity / "token").read_text().strip()  # read each time: Kubernetes renews it
        request = urllib.request.Request(  # noqa: S310 (the address is put together below, from https://)
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:  # noqa: S310 (the same)
            found: dict[str, Any] = json.load(answer)
            return found


def launch(jobs: RayJobs, pattern: str, job_name: str, job_uid: str) -> int:
    """Make the next try of this Job's RayJob, or follow the one under way; the exit code of the night.

    Raises `RefusedError` and `SilentError`.
    """
    for number in range(1, MOST_TRIES + 1):
        name = job_name if number == 1 else f"{job_name}-{number}"
        found = jobs.get(name)
        ended = found and outcome(found)
        if ended in (DONE, WRONG, INTERRUPTED):  # the pod before this one was gone before it could say so
            return int(ended)
        if ended:
            log.info("%s had failed; the next try", name)
            continue
        if found is None:
            of = jobs.get(pattern)
            if of is None:
                raise RefusedError(f"there is no RayJob {pattern} to make {name} of: apply the overlay nightly")
            jobs.create(made_of(of, name, job_name, job_uid))
            log.info("made RayJob %s", name)
        return follow(jobs, name)
    raise RefusedError(f"{job_name} has failed {MOST_TRIES} times")


def made_of(pattern: dict[str, Any], name: str, job_name: str, job_uid: str) -> dict[str, Any]:
    """A RayJob with the pattern's spec that is not suspended and belongs to the Job."""
    if len(name) > LONGEST_NAME:
        raise RefusedError(f"{name} is too long for a RayJob: {LONGEST_NAME} characters at most; rename the CronJob")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job_uid}
    labels = {"app.kubernetes.io/part-of": "rayscan"} | pattern["metadata"].get("labels", {})
    return {
        "apiVersion": pattern["apiVersion"],
        "kind": pattern["kind"],
        "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
        "spec": {key: value for key, value in pattern["spec"].items() if key not in ("suspend", "jobId")},
    }


def follow(jobs: RayJobs, name: str) -> int:
    """Wait until the RayJob has ended; its exit code."""
    told = ""
    while True:
        job = jobs.get(name)
        if job is None:
            log.error("%s was deleted", name)
            return INTERRUPTED
        status = job.get("status", {})
        now = f"{status.get('jobDeploymentStatus') or 'new'} {status.get('jobStatus') or ''}".strip()
        if now != told:
            log.info("%s: %s", name, now)
            told = now
        code = outcome(job)
        if code is not None:
            message = (status.get("message") or "no message").splitlines()[0]
            log.log(logging.ERROR if code else logging.INFO, "%s ended with %d: %s", name, code, message)
            return code
        jobs.wait(POLL_SECONDS)


def outcome(job: dict[str, Any]) -> int | None:
    """The exit code that a RayJob's status tells; None while it runs.

    KubeRay gives Ray's message on, which names the verb's exit code. 130 is a job that was stopped, or cut off by its
    deadline: both were wanted.
    """
    status = job.get("status", {})
    if status.get("jobDeploymentStatus") not in _ENDED:
        return None
    if status.get("jobStatus") == "SUCCEEDED":
        return DONE
    if status.get("jobStatus") == "STOPPED" or status.get("reason") == "DeadlineExceeded":
        return INTERRUPTED
    if status["jobDeploymentStatus"] == "ValidationFailed":
        return WRONG
    told = _EXIT_CODE.search(status.get("message") or "")
    code = int(told[1]) if told else FAILED
    return code if code > 0 else 128 - code


def main() -> int:
    """Read who we are from the pod, and launch."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # process 1 is not ended by it otherwise
    try:
        (pattern,) = sys.argv[1:]
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        host = f"[{host}]" if ":" in host else host
        namespace = (IDENTITY / "namespace").read_text().strip()
        jobs = RayJobs(
            url=f"https://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs",
            context=ssl.create_default_context(cafile=str(IDENTITY / "ca.crt")),
        )
        return launch(jobs, pattern, os.environ["JOB_NAME"], os.environ["JOB_UID"])
    except (KeyError, ValueError, FileNotFoundError) as error:
        log.error("this is for the pod of a CronJob (overlays/nightly): %r", error)
        return WRONG
    except RefusedError as error:
        log.error("%s", error)
        return WRONG
    except SilentError as error:
        log.error("%s", error)
        return FAILED


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        told: dict[str, Any] = json.load(error)
        return str(told.get("message", error.reason))
    except (ValueError, OSError):
        return str(error.reason)


if __name__ == "__main__":
    sys.exit(main())
