"""Metrics as Prometheus reads them from the node's port, and silence where there is no Ray."""

import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

from pipelines import telemetry
from pipelines.table.drift import DriftFinding, Level
from tests.servers import clean_environment

EXPORT_SECONDS = 60
"""Ray exports every ten seconds; a busy machine may be late."""


def values(port: int, mark: str) -> dict[str, float]:
    """All exported values whose labels carry the mark, by name and tags of ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_rayscan_") and mark in line:
            tags = re.findall(r'\b(status|model|stage|metric|quantity|site)="([^"]*)"', line)
            name = line.partition("{")[0] + "".join(f" {value.replace(mark, '')}" for _, value in sorted(tags))
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def drift(site: str | None, *, psi: float | None, level: Level, quantity: str = "probability") -> DriftFinding:
    return DriftFinding(site=site, quantity=quantity, n=500, psi=psi, ks=psi, level=level, note="")


EXPORTED = {
    "ray_rayscan_scans_total  scored": 10.0,
    "ray_rayscan_scans_total  rejected": 4.0,
    "ray_rayscan_stage_seconds_total decode": 3.0,
    "ray_rayscan_trials_total pruned": 1.0,
    "ray_rayscan_epochs_total ": 2.0,
    "ray_rayscan_epoch_seconds_total ": 4.0,
    "ray_rayscan_trials_running": 3.0,
    "ray_rayscan_best_value auc": 0.9,
    "ray_rayscan_drift_psi  probability all sites": 0.01,
    "ray_rayscan_drift_level  probability all sites": 0.0,
    "ray_rayscan_drift_psi  probability north": 0.31,
    "ray_rayscan_drift_level  probability north": 2.0,
    "ray_rayscan_drift_level  reject_share all sites": 1.0,
    "ray_rayscan_drift_share  reject_share all sites": 0.25,
}
"""What the test below counts, by name and tags."""


@pytest.mark.usefixtures("ray_session")
def test_what_a_worker_and_the_driver_count_appears_on_the_nodes_port() -> None:
    import ray

    mark = secrets.token_hex(4)

    @ray.remote(num_cpus=0.1)
    class Worker:
        def count(self) -> None:
            telemetry.count_scans({"scored": 5, "rejected": 2, "failed": 0}, model=mark)
            telemetry.count_seconds({f"decode{mark}": 1.5})
            telemetry.count_bytes(1000)

    worker = Worker.remote()
    ray.get([worker.count.remote(), worker.count.remote()])
    telemetry.count_trial(f"pruned{mark}")
    telemetry.count_epoch(2.5, model=mark)
    telemetry.count_epoch(1.5, model=mark)
    telemetry.set_running(3)
    telemetry.set_best_value(0.5, metric=f"auc{mark}")
    telemetry.set_best_value(0.9, metric=f"auc{mark}")
    telemetry.set_drift(
        [
            drift(None, psi=0.01, level="ok"),
            drift("north", psi=0.31, level="alarm"),
            drift("south", psi=None, level="too_few"),
            replace(drift(None, quantity="reject_share", psi=None, level="warn"), share=0.25),
        ],
        model=mark,
    )

    (node,) = ray.nodes()
    gate, end = threading.Event(), time.monotonic() + EXPORT_SECONDS
    seen: dict[str, float] = {}
    while seen != EXPORTED and time.monotonic() < end:
        for label in (mark, "rayscan_trials_running"):
            seen |= values(node["MetricsExportPort"], label)  # Ray shows a gauge that is set once for some seconds only
        gate.wait(0.25)
    assert seen == EXPORTED
    ray.kill(worker)


@pytest.mark.usefixtures("ray_session")
def test_only_the_largest_sites_have_gauges_of_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "DRIFT_SITES", 2)
    seen: set[str] = set()
    gauge = telemetry._metrics().drift_level
    monkeypatch.setattr(gauge, "set", lambda _, tags: seen.add(tags["site"]))
    sizes = {None: 1111, "a": 1, "b": 1000, "c": 10, "d": 100}
    telemetry.set_drift(
        [
            replace(drift(site, psi=None, level="ok", quantity=quantity), n=n)
            for site, n in sizes.items()
            for quantity in ("ood_score", "reject_share")
        ],
        model="m",
    )
    assert seen == {telemetry.ALL_SITES, "b", "d"}


def test_without_ray_nothing_happens_and_ray_is_not_even_imported() -> None:
    code = (
        "import sys\nfrom pipelines import telemetry\n"
        "telemetry.count_scans({'scored': 1}, model='m')\ntelemetry.set_best_value(1.0, metric='auc')\n"
        "telemetry.set_drift([], model='m')\n"
        "sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True)
