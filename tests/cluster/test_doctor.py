"""`rayscan doctor`: a healthy node, and each illness by its facts; those that can be caused here are caused."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.doctor import examine
from cluster.findings import Finding, judge, judge_head, judge_metrics, judge_ports, judge_storage, silence, told
from cluster.node_facts import DashboardFacts, NodeFacts, NodeProbe, listening, nvidia_gpus
from tests.servers import free_port

GIB = 2**30
HEALTHY = NodeFacts(
    python="3.11.7",
    libraries={"ray": "2.60.0", "pillow": "13.0.0"},
    source="0123456789abcdef",
    free_bytes=100 * GIB,
    total_bytes=200 * GIB,
    free_memory=30 * GIB,
    total_memory=64 * GIB,
    gpus=1,
    driver_gpus=("NVIDIA L4",),
    driver="570.86.15",
    cuda="13.0",
    asks_token=True,
    token_file="/home/ubuntu/.ray/auth_token",
)
DASHBOARD = DashboardFacts(port=8265, bound=("127.0.0.1",), status=401)
CHECKS = ["python", "libraries", "code", "start", "clock", "disk", "memory", "gpus", "auth", "token", "folder"]


def ill(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all(finding.mend for finding in findings if finding.state != "ok")
    assert not any(finding.mend for finding in findings if finding.state == "ok")
    return [(finding.check, finding.state) for finding in findings if finding.state != "ok"]


def judged(facts: NodeFacts, *, skew: float = 0.01, ray_gpus: int = 1) -> list[Finding]:
    return judge("node", facts, HEALTHY, skew=skew, ray_gpus=ray_gpus)


@pytest.mark.usefixtures("ray_session")
def test_a_healthy_node_with_reach_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no kubectl
    findings = examine(tmp_path.as_uri())
    assert [finding.check for finding in findings] == [*CHECKS, "ports", "metrics", "storage", "dashboard"]
    # The disk, the memory and the rights of the token's file are those of whoever runs this.
    assert all(finding.ok for finding in findings if finding.check not in ("disk", "memory", "token"))
    (folder,) = (finding for finding in findings if finding.check == "folder")
    assert folder.state == "warn", "the session of these tests is one that Ray opens to all"
    assert len({finding.node for finding in findings}) == 1
    assert told(findings).splitlines()[-1].startswith("15 checks: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda facts: facts, []),
        (lambda facts: replace(facts, python="3.12.1"), [("python", "fail")]),
        (lambda facts: replace(facts, libraries={"ray": "2.60.0", "pillow": "12.0.0"}), [("libraries", "fail")]),
        (lambda facts: replace(facts, source="f" * 16), [("code", "fail")]),
        (lambda facts: replace(facts, slow_imports=("rfc3987_syntax",)), [("start", "warn")]),
        (lambda facts: replace(facts, free_bytes=9 * GIB, total_bytes=100 * GIB), [("disk", "warn")]),
        (lambda facts: replace(facts, free_bytes=9 * GIB), [("disk", "fail")]),
        (lambda facts: replace(facts, free_memory=6 * GIB), [("memory", "warn")]),
        (lambda facts: replace(facts, free_memory=3 * GIB), [("memory", "fail")]),
        (lambda facts: replace(facts, free_memory=None), []),
        (lambda facts: replace(facts, gpus=0), [("gpus", "fail")]),
        (lambda facts: replace(facts, gpus=2), [("gpus", "warn")]),
        (lambda facts: replace(facts, driver_gpus=("NVIDIA L4", "NVIDIA L4")), [("gpus", "warn")]),
        (lambda facts: replace(facts, asks_token=False, token_file=""), [("auth", "fail")]),
        (lambda facts: replace(facts, token_mode=0o644), [("token", "fail")]),
        (lambda facts: replace(facts, token_file=""), []),
        (lambda facts: replace(facts, open_folder="/tmp/ray"), [("folder", "warn")]),
        (lambda facts: replace(facts, open_folder="/tmp/ray", in_pod=True), []),
    ],
)
def test_each_illness_is_found_alone(change: Callable[[NodeFacts], NodeFacts], expected: list[tuple[str, str]]) -> None:
    assert ill(judged(change(HEALTHY))) == expected


@pytest.mark.parametrize(("skew", "state"), [(0.5, "ok"), (-5.0, "warn"), (300.0, "fail")])
def test_a_clock_that_runs_away_is_told_by_how_far(skew: float, state: str) -> None:
    (clock,) = (finding for finding in judged(HEALTHY, skew=skew) if finding.check == "clock")
    assert clock.state == state
    assert clock.ok == (state != "fail")


def test_gpus_are_told_with_their_names_and_the_version_of_the_driver() -> None:
    (gpus,) = (finding for finding in judged(HEALTHY) if finding.check == "gpus")
    assert gpus.found == "1, the driver 570.86.15 sees 1 (NVIDIA L4)"
    blind = replace(HEALTHY, gpus=0, driver="", driver_gpus=())
    (gpus,) = (finding for finding in judged(blind) if finding.check == "gpus")
    assert gpus.found == "torch sees 0, Ray offers 1, the driver is missing"
    assert "built for CUDA 13.0" in gpus.mend


def write_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_driver_is_asked_by_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    write_program(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 570.86.15'; echo 'NVIDIA H200, 570.86.15'")
    assert nvidia_gpus() == (("NVIDIA H200", "NVIDIA H200"), "570.86.15")
    write_program(tmp_path, "nvidia-smi", 'echo "couldn\'t communicate with the NVIDIA driver"; exit 9')
    assert nvidia_gpus() == ((), "")


def test_a_store_out_of_reach_is_named(tmp_path: Path) -> None:
    wrong, seconds = NodeProbe().reach(str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in wrong
    assert seconds < 5
    assert ill([judge_storage("node", "s3://x", wrong, seconds)]) == [("storage", "fail")]


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, []), (7.0, [("storage", "warn")])])
def test_a_slow_store_is_told_with_its_time(seconds: float, expected: list[tuple[str, str]]) -> None:
    finding = judge_storage("node", "s3://hospital/scans", "", seconds)
    assert ill([finding]) == expected
    assert f"{seconds:.2f} s" in finding.found


def test_ports_of_other_nodes_that_are_closed_are_named() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        opened, closed = server.getsockname(), ("127.0.0.1", free_port())
        silent = NodeProbe().silent([opened, closed])
    assert silent == [closed]
    finding = judge_ports("node", 2, silent)
    assert ill([finding]) == [("ports", "fail")]
    assert f"1 of 2 ports of the other nodes do not answer: 127.0.0.1:{closed[1]}" in finding.found
    assert ill([judge_ports("node", 2, [])]) == ill([judge_ports("node", 0, [])]) == []
    assert "and 6 more" in judge_ports("node", 10, [closed] * 10).found


def test_a_metrics_port_without_an_answer_is_a_warning() -> None:
    assert ill([judge_metrics("node", 8080, answers=True)]) == []
    assert ill([judge_metrics("node", 8080, answers=False)]) == [("metrics", "warn")]


@pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_listeners_are_told_with_the_address_they_are_bound_to(address: str, family: socket.AddressFamily) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.getsockname()[1]
        assert address not in listening(port)  # bound, and not yet listening
        server.listen()
        assert address in listening(port)


@pytest.fixture
def dashboard_without_token() -> Iterator[int]:
    """A dashboard that answers everybody, on all addresses; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("0.0.0.0", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_dashboard_that_is_open_is_found_by_asking_it(dashboard_without_token: int) -> None:
    facts = NodeProbe().dashboard(dashboard_without_token)
    assert (facts.bound, facts.status) == (("0.0.0.0",), 200)
    assert ill(judge_head("node", facts, {})) == [("dashboard", "fail")]


def test_a_dashboard_that_does_not_answer_is_found_by_asking_it() -> None:
    facts = NodeProbe().dashboard(free_port())
    assert facts.status is None
    assert ill(judge_head("node", facts, {})) == [("dashboard", "fail")]


def test_the_head_is_judged_by_its_dashboard_and_its_market() -> None:
    assert ill(judge_head("node", None, {})) == []
    assert ill(judge_head("node", DASHBOARD, {"market": "on-demand"})) == []
    everywhere = replace(DASHBOARD, bound=("0.0.0.0",))
    assert ill(judge_head("node", everywhere, {})) == [("dashboard", "warn")]
    assert ill(judge_head("node", DASHBOARD, {"market": "spot"})) == [("market", "fail")]
    assert ill(judge_head("node", DASHBOARD, {"ray.io/market-type": "spot"})) == [("market", "fail")]


def test_a_node_that_does_not_answer_fails() -> None:
    assert ill([silence("node", TimeoutError(), 120)]) == [("answer", "fail")]
