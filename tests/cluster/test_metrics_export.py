"""The metrics of a night in a file and at a Pushgateway, whatever ends it; a fault there does not stop it."""

import http.server
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics_export import exported
from models.errors import InputError
from pipelines.errors import IncompleteError


def read(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture
def gateway() -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a server that keeps what is put there, and what it keeps: path -> body."""
    kept: dict[str, str] = {}

    class Keeper(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            kept[self.path] = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keeper)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}", kept
    server.shutdown()
    server.server_close()
    serving.join()


def test_without_a_place_there_is_nothing_to_fill(tmp_path: Path) -> None:
    with exported(str(tmp_path), None, None) as metrics:
        assert metrics is None


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (typer.Exit(3), 3), (IncompleteError("x"), 3), (KeyboardInterrupt(), 130)]
)
def test_the_file_says_how_the_night_ended(tmp_path: Path, error: BaseException | None, code: int) -> None:
    file = tmp_path / "night.prom"
    umask = os.umask(0o077)
    try:
        with (
            pytest.raises(type(error)) if error else nullcontext(),
            exported(str(tmp_path / "scores"), str(file), None) as metrics,
        ):
            assert metrics
            metrics.labels["model"] = "12ab"
            if error:
                raise error
    finally:
        os.umask(umask)
    found = read(file.read_text())
    assert (found["rayscan_exit_code"], found["rayscan_running"]) == (code, 0)
    assert file.stat().st_mode & 0o777 == 0o644, "node_exporter is another user"
    assert [path.name for path in tmp_path.iterdir()] == ["night.prom"]


def test_a_gateway_gets_a_group_for_each_scores_and_model(tmp_path: Path, gateway: tuple[str, dict[str, str]]) -> None:
    url, kept = gateway
    with exported(str(tmp_path), None, url) as metrics:
        assert metrics
        metrics.publish()
        assert kept == {}, "a group without a model is never replaced"
        metrics.labels["model"] = "12ab"
    ((path, body),) = kept.items()
    assert path.startswith("/metrics/job/rayscan/model/12ab/scores@base64/")
    assert read(body)["rayscan_exit_code"] == 0


def test_a_place_that_fails_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with caplog.at_level(logging.WARNING, "rayscan"), exported(str(tmp_path), str(folder / "n.prom"), None) as metrics:
        assert metrics
        metrics.labels["model"] = "12ab"
        folder.rmdir()
        for _ in range(3):
            metrics.publish()
    (line,) = caplog.messages
    assert f"metrics were not written to {folder}/n.prom" in line


def test_a_night_that_fails_before_it_knows_its_model_leaves_what_the_last_one_said(tmp_path: Path) -> None:
    file = tmp_path / "night.prom"
    file.write_text("rayscan_last_success_timestamp_seconds 1\n")
    with pytest.raises(IncompleteError), exported(str(tmp_path / "scores"), str(file), None):
        raise IncompleteError("another run is at work")
    assert file.read_text() == "rayscan_last_success_timestamp_seconds 1\n"


def test_a_gateway_that_speaks_something_else_ends_no_night(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"SSH-2.0-x\r\n")

        speaking = threading.Thread(target=speak)
        speaking.start()
        with exported(str(tmp_path), None, f"http://127.0.0.1:{server.getsockname()[1]}") as metrics:
            assert metrics
            metrics.labels["model"] = "12ab"
        speaking.join()
    assert "metrics were not written to http://127.0.0.1" in caplog.text


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for file, gateway in (
        (f"{tmp_path}/n.txt", None),
        ("s3://b/n.prom", None),
        (None, "gopher://x"),
        (None, "http://x/?t=1"),
    ):
        with pytest.raises(InputError, match="--metrics-"), exported(str(tmp_path), file, gateway):
            pass
