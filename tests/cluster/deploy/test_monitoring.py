"""Alerts and dashboards: promtool reads and tries them, and each metric they name is one that something exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pipelines.metrics import METRICS, NIGHT
from tests.cluster.deploy.kustomize import KUBERAY, build

MONITORING = Path(__file__).parents[3] / "cluster" / "deploy" / "monitoring"
README = Path(__file__).parents[3] / "cluster" / "README.md"
OURS = {metric.exported_name for metric in METRICS}
RAYS_PANELS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
"""Where Ray names what it exports itself."""
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((MONITORING / "dashboards").glob("*.json"))}
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def promtool(*args: str | Path) -> None:
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("no promtool here; Debian's package prometheus has it")
    done = subprocess.run([command, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def targets(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def queries() -> dict[str, str]:
    """Every expression of a dashboard, its variables filled in, and of an alert."""
    found = {f"alert:{rule['alert']}": rule["expr"] for rule in ALERTS}
    for name, dashboard in DASHBOARDS.items():
        for number, expr in enumerate(targets(dashboard)):
            found[f"{name}:{number}"] = re.sub(r"\$\w+", ".*", expr)
    return found


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:rayscan|ray|autoscaler)_[a-z_]+\b", text))


def test_promtool_reads_the_example_and_the_alerts() -> None:
    promtool("check", "config", MONITORING / "prometheus.yml")


def test_the_operator_gets_the_same_alerts() -> None:
    made = subprocess.run(["sh", MONITORING / "prometheus_rule.sh"], capture_output=True, check=True).stdout
    rule = yaml.safe_load(made)
    assert (rule["kind"], rule["metadata"]["namespace"]) == ("PrometheusRule", "rayscan")
    assert [alert for group in rule["spec"]["groups"] for alert in group["rules"]] == ALERTS


def test_each_alert_fires_when_it_should_and_not_else() -> None:
    promtool("test", "rules", MONITORING / "alerts_test.yaml")


def test_each_alert_is_tried_both_ways() -> None:
    tried = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert set(tried) == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


def test_each_alert_tells_a_person_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_prometheus_reads_each_expression_of_a_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr}
        for number, (name, expr) in enumerate(queries().items())
        if not name.startswith("alert:")
    ]
    assert len(rules) >= 40
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_each_metric_that_is_named_is_exported_by_somebody() -> None:
    rays = names("".join(path.read_text() for path in RAYS_PANELS.glob("*_panels.py")))
    variables = [v["query"] for dashboard in DASHBOARDS.values() for v in dashboard["templating"]["list"]]
    named = names("\n".join([*queries().values(), *variables]))
    assert {name for name in named if name.startswith("rayscan_")} - OURS == set()
    assert {name for name in named if not name.startswith("rayscan_")} - rays == set()


def test_each_metric_of_ours_is_shown_somewhere() -> None:
    assert OURS - names("\n".join(queries().values())) == set()


def test_each_metric_of_ours_stands_in_the_readme_once() -> None:
    told = re.findall(r"`(rayscan_[a-z_]+)(?:\{[a-z, ]+\})?`", README.read_text().partition("\n## Watching\n")[2])
    table = [name for name in told if name in OURS]
    assert sorted(table) == sorted(OURS)


def test_the_labels_in_the_readme_are_those_that_are_exported() -> None:
    """Beyond those that all metrics of a night have."""
    told = dict(re.findall(r"`(rayscan_[a-z_]+)(?:\{([a-z, ]+)\})?`", README.read_text()))
    for metric in METRICS:
        common = len(NIGHT) if metric.labels[: len(NIGHT)] == NIGHT else 0
        assert told[metric.exported_name] == ", ".join(metric.labels[common:]), metric.name


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] == 39
    assert dashboard["uid"] == f"rayscan-{name}"
    assert "__inputs" not in dashboard, "the file is provisioned, not asked about"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert "datasource" in variables
    panels = dashboard["panels"]
    assert sorted(panel["id"] for panel in panels) == list(range(1, len(panels) + 1))
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries", "bargauge", "table")
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    cells = [cell for panel in panels for cell in cells_of(panel["gridPos"])]
    assert len(cells) == len(set(cells)), "two panels lie on each other"
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_each_field(name: str) -> None:
    """What its own model does not know is lost on the way through it."""
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="it is among the extras of dev")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    through = json.loads(JSONEncoder().encode(model.Dashboard.from_json(DASHBOARDS[name])))
    assert list(lost(DASHBOARDS[name], through, name)) == []


def lost(before: Any, after: Any, where: str) -> Iterator[str]:
    """The places of all that is in `before` and not the same in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif before != after:
        yield where


def cells_of(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_the_dashboards_lead_to_rays_own() -> None:
    rays = set(re.findall(r'default_uid="(\w+)"', "".join(path.read_text() for path in RAYS_PANELS.glob("*.py"))))
    for dashboard in DASHBOARDS.values():
        linked = [link["url"].removeprefix("/d/") for link in dashboard["links"] if link["type"] == "link"]
        assert len(linked) == 3
        assert set(linked) <= rays


def test_prometheus_and_its_operator_give_the_same_names() -> None:
    example = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (of_ray,) = [job for job in example["scrape_configs"] if job["job_name"] == "ray"]
    (rule,) = of_ray["metric_relabel_configs"]
    (monitor,) = [one for one in build(KUBERAY / "overlays" / "gpu") if one["kind"] == "PodMonitor"]
    (nodes,) = [point for point in monitor["spec"]["podMetricsEndpoints"] if point["port"] == "metrics"]
    assert nodes["metricRelabelings"] == [
        {"sourceLabels": rule["source_labels"], "regex": rule["regex"], "targetLabel": rule["target_label"]}
    ]
