"""Fixtures shared by all tests: real servers, one local Ray, a phantom archive, and real films where they exist."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pipelines import connections, storage
from tests.servers import AzureServer, S3Server, azurite_server, find_azurite, moto_server, rclone_server

Server = TypeVar("Server", S3Server, AzureServer)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Before torch is imported: threads of two test processes that spin while they wait take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the credentials, settings or cache of the person who runs it."""
    kept = {"RAYSCAN_REAL_DATA", "RAYSCAN_REAL_WEIGHTS", "RAYSCAN_KUBERAY_CRDS", "RAYSCAN_AZURITE"}
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "RAYSCAN_")) and name not in kept:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "rayscan-cache"))
    storage._kept_store.cache_clear()
    connections.s3_client.cache_clear()


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server without conditional puts."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """An S3 server with conditional puts."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzureServer]:
    """Azure's blob store, emulated by Microsoft's Azurite: an npm package, so not on every machine."""
    program = find_azurite()
    if program is None:
        pytest.skip(
            "no azurite-blob here: `make azurite` installs it where there is npm; or name it in RAYSCAN_AZURITE"
        )
    with azurite_server(program) as server:
        yield server


def _use(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def s3(rclone: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The rclone server, with this process's environment set up to use it."""
    return _use(rclone, monkeypatch)


@pytest.fixture
def s3_conditional(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The moto server, with this process's environment set up to use it."""
    return _use(moto, monkeypatch)


@pytest.fixture
def azure(azurite: AzureServer, monkeypatch: pytest.MonkeyPatch) -> AzureServer:
    """The Azurite server, with this process's environment set up to use it."""
    return _use(azurite, monkeypatch)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need workers. Four logical CPUs on any machine, so that no stage starves."""
    import ray

    from cluster.session import twice_if_slow

    often = {"metrics_report_interval_ms": 1000}
    twice_if_slow(
        lambda: ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            logging_level="WARNING",
            log_to_driver=False,
            _system_config=often,
        )
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled archive of phantom films in Kaggle's layout."""
    from pipelines.phantom import write_archive

    folder = tmp_path_factory.mktemp("phantoms")
    write_archive(storage.open_store(str(folder)), patients=60, seed=7, size=128)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real films named by RAYSCAN_REAL_DATA (kermany_224/, kermany_original/, dicom/)."""
    folder = os.environ.get("RAYSCAN_REAL_DATA")
    if not folder:
        pytest.skip("RAYSCAN_REAL_DATA names no folder of real films")
    return Path(folder)


@pytest.fixture(scope="session")
def rayscan_command() -> str:
    """The installed `rayscan`."""
    command = shutil.which("rayscan", path=str(Path(os.sys.executable).parent))  # type: ignore[attr-defined]
    assert command, "rayscan is not installed beside this Python"
    return command
