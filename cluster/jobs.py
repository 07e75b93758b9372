"""Verbs on a cluster: submit one, follow its log, list and stop what runs there, through Ray's Jobs API.

A job runs `python -m cluster.cli VERB …` on the cluster with the code of the machine it was submitted from, and ends
with the exit code of the verb. The token is found as Ray finds it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH,
~/.ray/auth_token.
"""

import asyncio
import logging
import os
import secrets
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster import source
from cluster.admission import use_token
from cluster.interrupt import Interrupt
from cluster.job_files import send
from cluster.preflight import listens
from models.messages import first_line
from pipelines.errors import IncompleteError, InputError, NotFoundError, RayscanError
from pipelines.table.registry import USER_VARIABLE, this_user

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger("rayscan")

COMMAND = ("python", "-m", "cluster.cli")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PATIENCE_SECONDS = 600.0
"""How long a line that is cut is tried again, each time: a tunnel is soon up again, and a job may take all night."""
RECONNECT_SECONDS = 3.0
SETTLE_SECONDS = 30
QUIET_SECONDS = 0.5
"""After so long without a line a job that is followed is asked whether it has ended."""
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_VERB = "rayscan_verb"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of Ray's client: a line for every package it uploads, at a level these modules set themselves."""
_START = (
    "start one with `ray start --head` or `ray up ray_cluster.yaml`; for a remote one open a tunnel with "
    "`ray dashboard ray_cluster.yaml`"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submitted job."""

    job: str
    """Its id, for `rayscan logs` and `rayscan stop`."""
    verb: str
    """Empty for a job that rayscan did not submit."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    """The verb's exit code; None until it has ended, and when it was stopped or never started."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Where the dashboard of a cluster is."""

    url: str
    answers: bool
    hint: str


def submit(
    verb_args: Sequence[str],
    address: str | None = None,
    *,
    wait: bool = True,
    stop_on_term: bool = False,
    command: Sequence[str] = COMMAND,
    files: Sequence[Path] = (),
    write: Callable[[str], object] | None = None,
) -> int:
    """Run a verb with its arguments on the cluster at `address` (http://…) and return the verb's own exit code.

    The job's log (stdout and stderr together) goes to `write` as it comes, by default to stdout. Ctrl-C stops
    following the log, not the job; so does SIGTERM, unless with `stop_on_term` it stops the job, waits for its end and
    raises SystemExit(143). With `wait=False` the job's id is written and 0 returned. `files` are sent along
    (`cluster/job_files.py`). A job that was stopped or never started counts as 3, as running it again resumes it; one
    killed by a signal as 128 + signal.

    Raises `InputError` when there is no verb, no cluster at the address, or the token is missing or refused, and
    `IncompleteError` when the connection to the cluster is lost.
    """
    if not verb_args or not verb_args[0].isalpha():
        raise InputError("nothing to submit: name a verb, as in `rayscan submit -- score ARCHIVE --model B --out S`")
    if stop_on_term and not wait:
        raise InputError("--stop-on-term stops the job that is waited for: leave --no-wait out")
    address = jobs_address(address)
    _warn_of_local_paths(verb_args, address)
    _knock(address)
    write = write or _write_to_stdout
    interrupt = Interrupt()
    with _translated(address), interrupt.installed():
        client = _client(address)
        job = ""
        try:
            with interrupt.held():  # a signal must not leave a job behind that nobody knows of
                job = _submit(client, verb_args, command, files)
                log.info("submitted %s to %s", job, address)
            if wait:
                return _followed(client, job, write)
            write(job + "\n")
            return 0
        except (KeyboardInterrupt, SystemExit) as signal:
            if job and stop_on_term and isinstance(signal, SystemExit):
                _stop_and_wait(client, job)
            elif job:
                _say_it_goes_on(job)
            raise


def follow_job(job: str, address: str | None = None, *, write: Callable[[str], object] | None = None) -> int:
    """Follow a job's log to its end; its exit code, as `submit` gives it.

    Raises `NotFoundError` when there is no such job, else what `submit` raises.
    """
    address = jobs_address(address)
    _knock(address)
    with _translated(address, job):
        client = _client(address)
        client.get_job_info(job)
        try:
            return _followed(client, job, write or _write_to_stdout)
        except KeyboardInterrupt:
            _say_it_goes_on(job)
            raise


def _stop_and_wait(client: "JobSubmissionClient", job: str) -> None:
    log.info("stopping %s: SIGTERM", job)
    try:
        client.stop_job(job)
        asyncio.run(_settled(client, job))
    except Exception as error:  # noqa: BLE001 (the signal ends this process, whatever the cluster says)
        log.warning("%s may still be at work: %s", job, first_line(error))


def _say_it_goes_on(job: str) -> None:
    log.info("%s goes on. Its log: `rayscan logs -f %s`; to stop it: `rayscan stop %s`", job, job, job)


def _followed(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> int:
    details = asyncio.run(_follow(client, job, write))
    code = details.driver_exit_code
    if code is None:
        log.error("%s ended as %s: %s", job, details.status, (details.message or "no message").splitlines()[0])
        return IncompleteError.exit_code
    return code if code >= 0 else 128 - code


def list_jobs(address: str | None = None) -> list[Job]:
    """Every job submitted to the cluster, oldest first."""
    address = jobs_address(address)
    _knock(address)
    with _translated(address):
        submitted = [_job(details) for details in _client(address).list_jobs() if details.submission_id]
    return sorted(submitted, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC))


def job_logs(job: str, address: str | None = None) -> str:
    """The log of a job so far. Raises `NotFoundError` when there is no such job."""
    address = jobs_address(address)
    _knock(address)
    with _translated(address, job):
        return _client(address).get_job_logs(job)


def stop_job(job: str, address: str | None = None) -> bool:
    """Ask a job to end, and Ray to kill it three seconds later; False when it had ended before.

    Raises `NotFoundError` when there is no such job.
    """
    address = jobs_address(address)
    _knock(address)
    with _translated(address, job):
        return _client(address).stop_job(job)


def dashboard_address(address: str | None = None) -> Dashboard:
    """Where the dashboard of the cluster is, whether it answers, and how to reach it from another machine."""
    url = jobs_address(address)
    answers = _answers(url)
    hint = (
        "The page asks once for the cluster's token: `ray get-auth-token` prints it. "
        "Past runs and pictures: `rayscan report`."
        if answers
        else f"No dashboard there: {_START}, then look again."
    )
    return Dashboard(url=url, answers=answers, hint=hint)


def jobs_address(address: str | None) -> str:
    """The Jobs API to talk to: the one given, else RAY_ADDRESS if it is an http:// one, else this machine's."""
    from_environment = os.environ.get(_ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS", "")
    if address is None:
        address = from_environment if from_environment.startswith(("http://", "https://")) else DEFAULT_ADDRESS
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{address} is no address of a dashboard: give one like {DEFAULT_ADDRESS}")
    return address.rstrip("/")


def _client(address: str) -> "JobSubmissionClient":
    use_token()
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Inside Ray these variables win over the argument; whoever gives --address means it.
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        return JobSubmissionClient(address)
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


def _submit(
    client: "JobSubmissionClient", verb_args: Sequence[str], command: Sequence[str], files: Sequence[Path]
) -> str:
    folders = source.package_folders()
    source.check_packages(folders)
    verb = verb_args[0]
    environment = source.cluster_environment() | {
        source.SOURCE_HASH_VARIABLE: source.source_hash(folders),
        USER_VARIABLE: this_user(),  # who decides is here, and not where the job runs
    }
    with tempfile.TemporaryDirectory(prefix="rayscan-") as folder:
        send(files, Path(folder))
        return client.submit_job(
            entrypoint=shlex.join([*command, *verb_args]),
            submission_id=f"rayscan-{verb}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
            runtime_env=source.runtime_env(folders, Path(folder), environment),
            metadata={_VERB: verb, "job_name": job_name(verb_args, datetime.now(UTC).date())},
        )


def job_name(verb_args: Sequence[str], day: date) -> str:
    """What the dashboard calls a job: verb, what it works on, and day, as in `score chest-archive 2026-11-28`.

    Of a path only its last part is told, and of a job file its name: the dashboard shows it to everyone.
    """
    verb, *arguments = verb_args
    config = next((after for option, after in pairwise(arguments) if option == "--config"), "")
    first = arguments[0] if arguments and not arguments[0].startswith("-") else config
    what = first.rstrip("/").rpartition("/")[2].removesuffix(".toml")
    return " ".join(part for part in (verb, what, day.isoformat()) if part)


async def _follow(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> "JobDetails":
    """Write the log until the job ends, each character once though every connection starts from the beginning.

    Raises `IncompleteError` when the line is cut and does not come back in time, or the cluster behind it is another.
    """
    import aiohttp
    import requests

    written = 0
    cut: float | None = None
    while True:
        position = 0
        try:
            async for text in _log_of(client, job):
                cut = None
                fresh = text[max(0, written - position) :]
                position += len(text)
                if fresh:
                    write(fresh)
                    written = position
            return await _settled(client, job)
        except (aiohttp.ClientError, requests.RequestException, ConnectionError, RuntimeError) as error:
            if _is_unknown(error):
                raise IncompleteError(
                    f"the cluster knows no {job} any more: its head began anew; submit the same again"
                ) from error
            if cut is None:
                log.warning("the line to %s is cut; trying again for %.0f s", job, PATIENCE_SECONDS)
                cut = time.monotonic()
            elif time.monotonic() - cut > PATIENCE_SECONDS:
                raise IncompleteError(
                    f"lost the log of {job}: if its cluster lives it goes on, see `rayscan logs -f {job}`; if not,"
                    f" submit the same again ({first_line(error)})"
                ) from error
            await asyncio.sleep(RECONNECT_SECONDS)


async def _log_of(client: "JobSubmissionClient", job: str) -> AsyncIterator[str]:
    """The log of a job from its beginning, as it is written, until the job has ended.

    Ray ends its own stream up to four seconds after that, because it looks twice, two seconds apart.
    """
    length = 0
    stream = client.tail_job_logs(job)
    coming = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            await asyncio.wait([coming], timeout=QUIET_SECONDS)
            if coming.done():
                text = coming.result()
                if text is None:
                    return
                length += len(text)
                yield text
                coming = asyncio.ensure_future(anext(stream, None))
            elif client.get_job_status(job).is_terminal():
                yield client.get_job_logs(job)[length:]
                return
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming


def _is_unknown(error: Exception) -> bool:
    """Whether an answer says that there is no such job."""
    return getattr(error, "status", None) == 404 or "status code 404" in str(error)


async def _settled(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """The job once Ray has recorded its end, which may be a moment after the end of its log."""
    for _ in range(SETTLE_SECONDS * 10):
        details = client.get_job_info(job)
        if details.status.is_terminal():
            return details
        await asyncio.sleep(0.1)
    raise RayscanError(f"{job} closed its log but does not end: see `rayscan jobs` and `rayscan stop {job}`")


@contextmanager
def _translated(address: str, job: str = "") -> Iterator[None]:
    """Turn what Ray's client raises into our errors, each with the way out."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise InputError(
            f"{address} refuses this machine's token, or there is none: copy the one of the cluster's head node to "
            "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except ConnectionError as error:
        raise _silent(address) from error
    except requests.RequestException as error:
        raise IncompleteError(
            f"the cluster at {address} stopped answering ({type(error).__name__}); when it is back, submit the same"
            " again"
        ) from error
    except RuntimeError as error:
        if "status code 404" in str(error) and job:
            raise NotFoundError(f"{address} knows no job {job}: `rayscan jobs` lists them") from error
        raise RayscanError(f"the Jobs API at {address} fails: {first_line(error)}") from error


def _knock(address: str) -> None:
    """Refuse an address where nothing listens before Ray is imported, which takes a second; not behind a proxy."""
    parts = urlsplit(address)
    proxied = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")
    if not proxied and not listens(address):
        raise _silent(address)


def _silent(address: str) -> InputError:
    return InputError(f"no Ray cluster answers at {address}: {_START}")


def _job(details: "JobDetails") -> Job:
    return Job(
        job=details.submission_id or "",
        verb=(details.metadata or {}).get(_VERB, ""),
        status=details.status.value,
        started=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _warn_of_local_paths(verb_args: Sequence[str], address: str) -> None:
    if urlsplit(address).hostname in _LOOPBACK and _runs_here():
        return
    for argument in verb_args[1:]:
        if argument.startswith(("/", "./", "../", "~", "file://")) or ("/" in argument and Path(argument).exists()):
            log.warning("%s is a path of one machine: every node of the cluster must have it, or use s3://", argument)


def _runs_here() -> bool:
    """Whether a Ray was started on this machine; if not, a loopback address is the end of a tunnel."""
    return (Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster").exists()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=5):  # noqa: S310 (jobs_address lets only http through)
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it is there, and asks for the token
    except OSError:
        return False


def _write_to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
