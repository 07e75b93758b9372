"""The one place where rayscan meets Ray: `ray_session`, which holds the only `ray.init` of the tree.

Without an address it starts Ray on this machine and never joins one it finds running, as a bare `ray.init()` would.
In a submitted job Ray names the cluster in RAY_ADDRESS, and the job already carries the code.
Token authentication stays as Ray sets it: on for a local Ray; for an address, on when a token is at hand, since Ray
does not turn it on for an explicit address by itself.
"""

import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import admission, run_log, source
from cluster.interrupt import Interrupt
from cluster.market import SPOT, market_of
from pipelines.errors import InputError, RayscanError

log = logging.getLogger("rayscan")

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a hospital's cluster is sent anywhere
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # without it /api/train/v2/runs/v1 lists nothing
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task that asks for no GPU still sees them: `doctor` counts them
    **source.THREADS,
}
_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_TOO_SLOW = "timed out during startup"
_ENDED_BY_US = "it was killed by `ray.kill`"
"""Of a bare `Exception` in Ray 2.60's `_private/node.py`, whose 30 seconds cannot be set; nor can those after which its
raylet gives up waiting for its own agents."""
_LONGEST_FOLDER = 40
"""Bytes: Ray adds up to 64 to it for a socket, whose path may have 107."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """An open connection to Ray."""

    address: str
    """host:port of the cluster's control store."""
    dashboard_url: str | None
    """None when there is no dashboard."""
    cpus: float
    """Logical CPUs of the whole cluster now; an autoscaled one may grow."""
    gpus: float


@contextmanager
def ray_session(
    address: str | None = None, *, cpus: int | None = None, dashboard: bool = True, working_on: str = ""
) -> Iterator[Session]:
    """Connect to Ray for the length of a `with` block, with exactly the driver's own code on the workers.

    `address` is "local", "auto" or host:port (this machine must then be a node of that cluster); without it RAY_ADDRESS
    counts, and without that Ray starts here with `cpus` logical CPUs (default: all). A search needs `dashboard`: Tune
    frees the CPUs of a stopped trial through it. `working_on` names the work on the dashboard; give a verb, no paths.
    Inside another session this yields that one and leaves it open.

    What Ray's C++ code writes to stderr goes to the process's log file (`cluster/run_log.py`), which the log names.

    The first Ctrl-C raises KeyboardInterrupt in the block, a SIGTERM (`rayscan stop`, a scheduler, systemd) SystemExit;
    further ones are ignored until Ray is down, since one that hits Ray's own shutdown crashes the process and leaves
    Ray's behind.

    Raises `InputError` when the address is not that of a cluster, nothing answers there, the token is missing or
    refused, or another package shadows one of ours.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    admission.check_address(address, cpus)
    folders = source.package_folders()
    source.check_packages(folders)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _describe(None)
        return
    interrupt = Interrupt()
    with interrupt.installed(), run_log.native_stderr() as ray_log:
        try:
            # A local start that is broken off halfway leaves processes behind; one that waits for a cluster does not.
            with interrupt.held() if address == "local" else nullcontext():
                dashboard_at = _connect(address, folders, cpus, dashboard, working_on)
            interrupt.take_over()
            session = _describe(dashboard_at)
            _warn_on_spot()
            log.info(
                "%sRay at %s: %g CPUs, %g GPUs; dashboard %s",
                f"{working_on}: " if working_on else "",
                session.address,
                session.cpus,
                session.gpus,
                session.dashboard_url or "off",
            )
            if ray_log:
                log.info("Ray's own log goes to %s", ray_log)
            yield session
        finally:
            with interrupt.held():
                ray.shutdown(wait_for_processes=True)


def _connect(address: str, folders: dict[str, Path], cpus: int | None, dashboard: bool, working_on: str) -> str | None:
    """Returns host:port of the dashboard."""
    import ray
    from ray.job_config import JobConfig

    class OwnFolderOnly(JobConfig):
        """Ray puts the driver's folder first on its workers' path, unless the job has a working folder of its own.

        To give it one takes time at each start, and the workers find our packages without it (`first_on_path`).
        """

        def _runtime_env_has_working_dir(self) -> bool:
            return True

    _tell_in_the_log()
    local = address == "local"
    job = OwnFolderOnly if local else JobConfig
    options: dict[str, Any] = {"job_config": job(metadata={"rayscan": working_on})}
    if local:
        admission.hush_token_notice()
        options |= {"num_cpus": cpus, "include_dashboard": dashboard, "_temp_dir": _private_folder()}
    else:
        admission.use_token()
        if address != "auto":
            admission.ask(address)
    with tempfile.TemporaryDirectory(prefix="rayscan-") as empty, source.first_on_path(folders):
        if not local and not _job_carries_code():
            options["runtime_env"] = source.runtime_env(folders, Path(empty), source.cluster_environment())
        try:
            context = twice_if_slow(
                lambda: ray.init(
                    address,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    **options,
                )
            )
        except ray.exceptions.AuthenticationError as error:
            raise InputError(f"the Ray cluster at {address} wants its token: {admission.TOKEN}") from error
        except (ConnectionError, TimeoutError) as error:
            if local:
                raise RayscanError(f"Ray does not start on this machine: {error}") from error
            raise InputError(
                f"no Ray at {address} lets this machine in: it must be one of its nodes and have its token (`rayscan"
                f" submit` works from any machine); if none runs there, {admission.NO_CLUSTER}"
            ) from error
        except Exception as error:
            if _TOO_SLOW not in str(error):
                raise
            raise RayscanError(
                "Ray does not start on this machine: twice its node was not there after 30 s, the time that Ray allows;"
                " is the machine busy? Run the same command again"
            ) from error
        return context.dashboard_url or None


def twice_if_slow(start: Callable[[], Any]) -> Any:
    """What `start` returns, at the second try if Ray's node was not there in time at the first.

    A busy machine is often quicker then, with Ray's files in memory. What is left of the first ends with this process.
    """
    try:
        return start()
    except Exception as error:
        if _TOO_SLOW not in str(error):
            raise
        log.warning("Ray's node was not there after 30 s; starting it once more")
        return start()


def _private_folder() -> str | None:
    """A folder that only this account may enter, for the files of a Ray on this machine; None leaves it to Ray.

    Ray opens the folder it is given to everyone, and those of its sessions in it, which hold code for the workers, logs
    and sockets: so it gets one inside a closed folder. None where RAY_TMPDIR names a place, or the folder's name is too
    long for the sockets in it. Raises `InputError` if another account has made the folder.
    """
    folder = Path(tempfile.gettempdir()) / f"rayscan-{os.getuid()}"
    inner = str(folder / "ray")
    if os.environ.get("RAY_TMPDIR") or len(os.fsencode(inner)) > _LONGEST_FOLDER:
        return None
    with suppress(FileExistsError):  # also where it is no folder
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another account: remove it, or name a folder of yours in RAY_TMPDIR")
    folder.chmod(0o700)
    return inner


def _job_carries_code() -> bool:
    """Whether this is a submitted job that came with code; one that runs from a container image may have none."""
    runtime_env = json.loads(os.environ.get(_JOB_CONFIG_VARIABLE, "{}")).get("runtime_env") or {}
    return "py_modules" in runtime_env or "working_dir" in runtime_env


def _describe(dashboard: str | None) -> Session:
    import ray

    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Session(
        address=ray.get_runtime_context().gcs_address,
        dashboard_url=f"http://{dashboard}" if dashboard else None,
        cpus=have.get("CPU", 0.0),
        gpus=have.get("GPU", 0.0),
    )


def _warn_on_spot() -> None:
    """Say so if this driver is on a spot node: workers that are lost are replaced, a driver is not.

    Ray keeps drivers of submitted jobs on the head, unless RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES is set there; a person
    may start one on any node.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    labels = next(node["Labels"] for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
    if market_of(labels) == SPOT:
        log.warning("this run is driven from a spot node and ends with it: start it on the head, by `rayscan submit`")


def _tell_in_the_log() -> None:
    """Log what Ray says of lost nodes and processes: it prints that on stdout, among a verb's results.

    `log_to_driver=False` does not silence it, and there is no public way to send it elsewhere.
    """
    from ray._private import worker

    def tell(data: dict[str, Any], ignore_prefix: bool) -> None:
        for message in data["lines"]:
            level = logging.DEBUG if _ENDED_BY_US in message else logging.WARNING
            log.log(level, "Ray: %s", message.strip().partition("\n")[0])

    worker.print_to_stdstream = tell
