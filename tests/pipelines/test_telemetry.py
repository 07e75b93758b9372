"""Metrics as Prometheus reads them from the node's port and from text, and silence where there is no Ray."""

import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from types import ModuleType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines import metrics, telemetry
from pipelines.telemetry import Values
from tests.servers import clean_environment

EXPORT_SECONDS = 60
"""Ray exports every second here; a busy machine may be late."""


def values(port: int, mark: str) -> dict[str, float]:
    """All exported values whose labels carry the mark, by name and tags of ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_rayscan_") and mark in line:
            tags = re.findall(r'\b(status|model|metric)="([^"]*)"', line)
            name = line.partition("{")[0] + "".join(f" {value.replace(mark, '')}" for _, value in sorted(tags))
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


def wait_for(expected: dict[str, float], *marks: str) -> None:
    import ray

    (node,) = ray.nodes()
    gate, end = threading.Event(), time.monotonic() + EXPORT_SECONDS
    seen: dict[str, float] = {}
    while seen != expected and time.monotonic() < end:
        for mark in marks:
            seen |= values(node["MetricsExportPort"], mark)  # Ray shows a gauge that is set once for some seconds only
        gate.wait(0.25)
    assert seen == expected


@pytest.mark.usefixtures("ray_session")
def test_a_counter_is_on_the_nodes_port_at_zero_before_it_counts() -> None:
    mark = secrets.token_hex(4)
    of = {"scores": "s", "model": mark}
    night = Values()
    for status in ("scored", "rejected"):
        night.add(metrics.SCANS, 0, **of, status=status)
    night.to_ray()
    scored, rejected = "ray_rayscan_scans_total  scored", "ray_rayscan_scans_total  rejected"
    wait_for({scored: 0.0, rejected: 0.0}, mark)
    for _ in range(2):
        night.add(metrics.SCANS, 5, **of, status="scored")
        night.to_ray()
        night.to_ray()
    night.set(metrics.BACKLOG, 7, **of)
    night.to_ray()
    wait_for({scored: 10.0, rejected: 0.0, "ray_rayscan_backlog ": 7.0}, mark)


@pytest.mark.usefixtures("ray_session")
def test_what_a_search_counts_appears_on_the_nodes_port() -> None:
    mark = secrets.token_hex(4)
    telemetry.begin_trial(model=mark)
    wait_for({"ray_rayscan_epochs_total ": 0.0, "ray_rayscan_epoch_seconds_total ": 0.0}, mark)
    telemetry.begin_trial(model=mark)
    telemetry.count_epoch(2.5, model=mark)
    telemetry.count_epoch(1.5, model=mark)
    telemetry.count_trial(f"pruned{mark}")
    telemetry.set_running(3)
    telemetry.set_best_value(0.5, metric=f"auc{mark}")
    telemetry.set_best_value(0.9, metric=f"auc{mark}")
    expected = {
        "ray_rayscan_trials_total pruned": 1.0,
        "ray_rayscan_epochs_total ": 2.0,
        "ray_rayscan_epoch_seconds_total ": 4.0,
        "ray_rayscan_trials_running": 3.0,
        "ray_rayscan_best_value auc": 0.9,
    }
    wait_for(expected, mark, "rayscan_trials_running")


def test_text_is_what_prometheus_reads() -> None:
    night = Values()
    of = {"scores": 's3://a"b\\c', "model": "m"}
    night.add(metrics.SCANS, 2, **of, status="scored")
    night.add(metrics.SCANS, 0, **of, status="failed")
    night.set(metrics.BACKLOG, 1.5, **of)
    night.set(metrics.LEASE_INFO, 1, **of, host="h", pid="1")
    night.drop(metrics.LEASE_INFO)
    families = list(text_string_to_metric_families(night.text().decode()))
    assert {(f.name, f.type, f.documentation) for f in families} == {
        ("rayscan_scans", "counter", metrics.SCANS.says),
        ("rayscan_backlog", "gauge", metrics.BACKLOG.says),
    }
    samples = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}
    assert samples == {
        ("rayscan_scans_total", "m", 's3://a"b\\c', "scored"): 2.0,
        ("rayscan_scans_total", "failed", "m", 's3://a"b\\c'): 0.0,
        ("rayscan_backlog", "m", 's3://a"b\\c'): 1.5,
    }


def test_names_are_those_that_prometheus_wants() -> None:
    """https://prometheus.io/docs/practices/naming: a prefix, base units, no _total of a gauge; each name once."""
    names = Counter(metric.name for metric in metrics.METRICS)
    assert set(names.values()) == {1}
    assert [name for name in names if not re.fullmatch(r"rayscan_[a-z_]+(?<!_total)(?<!_ms)(?<!_minutes)", name)] == []


def test_a_label_that_a_metric_does_not_have_is_refused() -> None:
    with pytest.raises(AssertionError):
        Values().add(metrics.SCANS, 1, status="scored")


def test_without_ray_nothing_happens_and_ray_is_not_even_imported() -> None:
    code = (
        "import sys\nfrom pipelines import metrics, telemetry\n"
        "telemetry.begin_search()\ntelemetry.set_best_value(1.0, metric='auc')\n"
        "values = telemetry.Values()\nvalues.set(metrics.BACKLOG, 1, scores='s', model='m')\nvalues.to_ray()\n"
        "sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True)


def test_a_thread_that_looks_while_another_imports_ray_sees_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    values = Values()
    values.set(metrics.RUNNING, 1, scores="s", model="m")
    values.to_ray()  # raised: a module that is being imported has no names yet
