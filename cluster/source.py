"""Where rayscan's own four packages are, what they hash to, and how they travel to the workers.

Ray puts the folder a driver was started from first on its workers' path, so a driver started beside somebody else's
`models/` would have the workers import the stranger's. Every session therefore ships the packages the driver itself
imported, by name, together with an empty working folder that takes the place of the driver's. On this machine alone
nothing needs to be shipped: the workers find the packages where the driver did.
"""

import hashlib
import importlib.util
import os
import site
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import InputError

PACKAGES = ("cluster", "models", "pipelines", "tuning")
EXCLUDES = ("__pycache__", "*.pyc")
SOURCE_HASH_VARIABLE = "RAYSCAN_SOURCE_HASH"
"""Set in a job's environment by `rayscan submit`: what the code that runs there must hash to."""

THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For every process that computes; it counts only if set before torch is imported. The threads of a training step wait
for each other thousands of times a second, and spin as they do: on a busy machine they spin away the time that the
other one needs. Beside other work on 2 cores, four steps of a small convolutional network on two threads took 9.7 s
without this and 3.5 with it, and 1.41 s of CPU time against 0.56 (medians of three by turns, 27 November 2026). How
many threads there are stays as it was: Ray sets it to a worker's CPUs, and each training sets its own."""

CLUSTER_ENVIRONMENT = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "RAYSCAN_ALLOW_HTTP",
    "RAY_TRAIN_ENABLE_STATE_TRACKING",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    *THREADS,
)
"""All of the driver's environment that goes to a cluster. No secret stands here, because a runtime environment is kept
in Ray's control store and shown on its dashboard: credentials come from the instance role, and RAYSCAN_PATIENT_SECRET
from the nodes' own environment. A local session needs none of this: its workers inherit the driver's environment."""


def package_folders() -> dict[str, Path]:
    """Where this process imports each of our packages from. Raises `InputError` when one is missing."""
    folders = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"rayscan's package `{name}` is not installed here: run `pip install` on rayscan's folder")
        folders[name] = Path(next(iter(spec.submodule_search_locations))).resolve()
    return folders


def check_packages(folders: dict[str, Path]) -> None:
    """Raise `InputError`, naming the stranger, unless the packages at these folders are those of one rayscan.

    In a submitted job Ray unpacks each package into a folder of its own, so there their common hash is compared with
    the one `rayscan submit` sent along; elsewhere the packages must lie side by side.
    """
    submitted = os.environ.get(SOURCE_HASH_VARIABLE)
    if submitted is not None:
        found = source_hash(folders)
        if found != submitted:
            places = ", ".join(str(folder) for folder in folders.values())
            raise InputError(
                f"this job imports other code ({found}) than was submitted ({submitted}), from {places}: "
                "another rayscan comes first on this node's PYTHONPATH; remove it there"
            )
        return
    home = folders["cluster"].parent
    for name, folder in folders.items():
        if folder.parent != home:
            raise InputError(
                f"`{name}` is imported from {folder}, not from {home / name}: another package of that name comes "
                "first on Python's path; start rayscan from another folder, or uninstall that package"
            )


def source_hash(folders: dict[str, Path]) -> str:
    """16 hex of blake2b over names and bytes of our packages' Python files, and of the numbers they compute with."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(folders):
        for file in sorted(file for file in folders[name].rglob("*") if file.suffix in {".py", ".safetensors"}):
            content = file.read_bytes()
            digest.update(f"{name}/{file.relative_to(folders[name]).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def runtime_env(folders: dict[str, Path], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What Ray needs to run exactly our code in the workers, whatever folder the driver was started from.

    `folder` becomes the one in which jobs run: empty, or with the files sent along. It may go once Ray has taken it up.
    """
    return {
        "working_dir": str(folder),
        "py_modules": [str(folder) for folder in folders.values()],
        "excludes": list(EXCLUDES),
        "env_vars": environment,
    }


@contextmanager
def first_on_path(folders: dict[str, Path]) -> Iterator[None]:
    """Processes that are started in the block, and theirs in turn, import our packages from where this process did."""
    home, before = str(folders["cluster"].parent), os.environ.get("PYTHONPATH")
    if home in site.getsitepackages():  # they look there anyway, and on PYTHONPATH it would come before Python's own
        yield
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def cluster_environment() -> dict[str, str]:
    """The part of this environment that a cluster's workers may see; a URL with a password in it is left out."""
    found = {name: os.environ[name] for name in CLUSTER_ENVIRONMENT if name in os.environ}
    return {name: value for name, value in found.items() if urlsplit(value).password is None}
