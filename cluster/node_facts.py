"""What a process sees of the node it runs on: the facts that `rayscan doctor` judges.

Facts are gathered here and judged in `findings.py`, so that each illness can be tested without being ill.
"""

import http.client
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster import source
from pipelines.errors import RayscanError
from pipelines.scoring.whereabouts import here
from pipelines.storage import open_store

LIBRARIES: Final = (
    *("ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "pillow", "pydicom", "imagecodecs", "openvino"),
    *("obstore", "boto3", "deltalake", "duckdb", "safetensors"),
)
SLOW_TO_IMPORT: Final = ("rfc3987_syntax",)
"""Modules that every process of Ray imports where they are installed, and that take longer than Ray itself: jsonschema
takes up each checker of formats it finds, and this one compiles a grammar. `python -c "import ray"`, three times:
2.3 to 3.7 s of a processor with it, 0.5 to 0.8 s without (Ray 2.60, rfc3987-syntax 1.1.0, Python 3.11, AMD EPYC)."""
KNOCK_SECONDS: Final = 3.0
"""A port of the same network that has not answered by then is closed; a firewall that drops packets never answers."""
_KNOCKERS: Final = 64
_SMI_SECONDS: Final = 20.0
"""`nvidia-smi` takes seconds where the driver must be loaded first."""
_LISTENING: Final = {"/proc/net/tcp": socket.AF_INET, "/proc/net/tcp6": socket.AF_INET6}
_LISTEN: Final = "0A"
"""The state of a listening socket in those files (Linux, `include/net/tcp_states.h`)."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What one process sees of its machine."""

    python: str
    libraries: Mapping[str, str]
    source: str
    """Hash of our four packages as this process imports them."""
    free_bytes: int
    """Of the disk with the temporary folder."""
    total_bytes: int
    free_memory: int | None
    """Bytes, of the node or of the container; None: unknown."""
    total_memory: int
    gpus: int
    """That torch sees."""
    driver_gpus: tuple[str, ...] = ()
    """Names of those that NVIDIA's driver sees; empty without a driver."""
    driver: str = ""
    """Its version."""
    cuda: str = ""
    """Of CUDA that torch was built with; empty for a build without."""
    asks_token: bool
    """Whether Ray's processes here take no call without the cluster's token."""
    token_file: str = ""
    """Where the token lies; empty if it comes from the environment, or there is none."""
    token_mode: int = 0o600
    """Rights on that file."""
    open_folder: str = ""
    """That of Ray's sessions, if every account of the machine may enter it."""
    slow_imports: tuple[str, ...] = ()
    """Which of `SLOW_TO_IMPORT` are installed."""
    in_pod: bool = False
    """Whether this is a pod of Kubernetes."""


@dataclass(frozen=True, kw_only=True)
class DashboardFacts:
    """What the head sees of its dashboard."""

    port: int
    bound: tuple[str, ...]
    """Addresses it listens on: 127.0.0.1, or 0.0.0.0 for all."""
    status: int | None
    """HTTP status of an answer to a request without a token; None: nothing answers."""


class NodeProbe:
    """Runs on the node under examination."""

    def facts(self) -> NodeFacts:
        """Versions, code, disk, memory, GPUs and token here."""
        import torch
        from ray._common.utils import get_system_memory
        from ray._private.authentication.authentication_utils import is_token_auth_enabled

        disk = shutil.disk_usage(tempfile.gettempdir())
        driver_gpus, driver = nvidia_gpus()
        token_file, token_mode = _token_file()
        return NodeFacts(
            python=platform.python_version(),
            libraries={name: _version(name) for name in LIBRARIES},
            source=source.source_hash(source.package_folders()),
            free_bytes=disk.free,
            total_bytes=disk.total,
            free_memory=here().free_bytes,
            total_memory=get_system_memory(),
            gpus=torch.cuda.device_count(),
            driver_gpus=driver_gpus,
            driver=driver,
            cuda=torch.version.cuda or "",
            asks_token=is_token_auth_enabled(),
            token_file=token_file,
            token_mode=token_mode,
            open_folder=_open_folder(),
            slow_imports=tuple(name for name in SLOW_TO_IMPORT if importlib.util.find_spec(name)),
            in_pod="KUBERNETES_SERVICE_HOST" in os.environ,
        )

    def clock(self) -> float:
        """Seconds since the epoch by this node's clock."""
        return time.time()

    def reach(self, uri: str) -> tuple[str, float]:
        """List the beginning of a store: what is wrong, or an empty text; and the seconds it took."""
        started = time.perf_counter()
        try:
            next(open_store(uri).list(""), None)
        except RayscanError as error:
            return str(error), time.perf_counter() - started
        return "", time.perf_counter() - started

    def silent(self, places: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Which of these hosts and ports take no connection from here."""
        with ThreadPoolExecutor(_KNOCKERS) as knockers:
            answers = list(knockers.map(lambda place: _answers(*place), places))
        return [place for place, answers_here in zip(places, answers, strict=True) if not answers_here]

    def dashboard(self, port: int) -> DashboardFacts:
        """Where the dashboard of this head listens, and whether it asks for the token."""
        return DashboardFacts(port=port, bound=listening(port), status=_status_without_token(port))


def nvidia_gpus() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that NVIDIA's driver sees, and its version; nothing where it is missing or broken."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return (), ""
    command = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # it is there without its driver, as in many images
        return (), ""
    rows = [line.rpartition(", ") for line in asked.stdout.splitlines() if line.strip()]
    return tuple(name for name, _, _ in rows), rows[0][2] if rows else ""


def listening(port: int) -> tuple[str, ...]:
    """The addresses of this machine on which somebody listens at this port; empty where `/proc` does not tell."""
    return tuple(sorted(address for address, at in _listeners() if at == port))


def _listeners() -> Iterator[tuple[str, int]]:
    for file, family in _LISTENING.items():
        path = Path(file)
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == _LISTEN:
                address, _, port = local.partition(":")
                words = bytes.fromhex(address)  # each of four bytes, in the order of the processor: little-endian
                packed = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                yield socket.inet_ntop(family, packed), int(port, 16)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _status_without_token(port: int) -> int | None:
    """Of the dashboard on this machine; it reads a cluster's state, and changes nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=KNOCK_SECONDS)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _token_file() -> tuple[str, int]:
    """Where Ray reads the token, and the file's rights; as Ray looks for it: variable, named file, home."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "", 0o600
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return str(file), stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return "", 0o600


def _open_folder() -> str:
    """Where Ray keeps code, logs and sockets here, if other accounts may enter it; empty if not."""
    from ray._private.worker import _global_node

    folder = Path(_global_node.get_temp_dir_path()).resolve() if _global_node else Path(os.sep)
    around = [folder, *folder.parents]
    return str(folder) if folder.name and all(place.stat().st_mode & stat.S_IXOTH for place in around) else ""


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
