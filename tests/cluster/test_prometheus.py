"""A real Prometheus watches a night: on Ray's port while it runs, and in the file that outlives it."""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from pipelines.storage import open_store
from tests.cluster.deploy.test_monitoring import MONITORING
from tests.cluster.ray_head import wait_for
from tests.pipelines.bundles import save_untrained
from tests.pipelines.scoring.archive import write_films
from tests.servers import free_port, running_server

SECONDS = 60
"""For a value to arrive: exported and scraped every second, on a machine that may be busy."""

Answer = dict[tuple[str, ...], float]


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def is_ready(self) -> bool:
        """It listens before it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False

    def ask(self, query: str) -> Answer:
        """The answer to a query: the values of its labels, sorted by their names -> value."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return {tuple(v for _, v in sorted(one["metric"].items())): float(one["value"][1]) for one in found}

    def wait_for(self, query: str, expected: Answer) -> None:
        wait_for(lambda: self.ask(query) == expected, SECONDS)


@pytest.fixture
def textfiles(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The folder of a running node_exporter, and its address."""
    folder = tmp_path / "textfiles"
    folder.mkdir()
    command = shutil.which("prometheus-node-exporter")
    if command is None:
        pytest.skip("no prometheus-node-exporter here; it is a package of Debian")
    port = free_port()
    options = ("--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={folder}")
    with running_server([command, *options, f"--web.listen-address=127.0.0.1:{port}"], port):
        yield folder, f"127.0.0.1:{port}"


@pytest.fixture
def prometheus(tmp_path: Path, textfiles: tuple[Path, str], ray_session: None) -> Iterator[Prometheus]:
    """Prometheus with the example's own jobs, which look at this Ray and this node_exporter, every second."""
    import ray

    command = shutil.which("prometheus")
    if command is None:
        pytest.skip("no prometheus here; it is a package of Debian")
    (node,) = ray.nodes()
    example = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    of_ray, of_node, _ = example["scrape_configs"]
    del of_ray["file_sd_configs"]
    of_ray["static_configs"] = [{"targets": [f"127.0.0.1:{node['MetricsExportPort']}"]}]
    of_node["static_configs"] = [{"targets": [textfiles[1]]}]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yaml")],
        "scrape_configs": [of_ray, of_node],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    options = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb")
    with running_server([command, *options, f"--web.listen-address=127.0.0.1:{port}"], port) as server:
        found = Prometheus(server.endpoint)
        wait_for(found.is_ready, SECONDS)
        found.wait_for("sum by (job) (up)", {("ray",): 1, ("node",): 1})
        yield found


def test_what_prometheus_counted_is_what_the_record_says(
    prometheus: Prometheus, textfiles: tuple[Path, str], tmp_path: Path
) -> None:
    archive, out = (open_store(str(tmp_path / name)) for name in ("archive", "scores"))
    write_films(archive)
    bundle = save_untrained(tmp_path / "bundle").folder
    night = (
        *("score", str(archive.path), "--model", str(bundle), "--out", str(out.path), "--shard-size", "4"),
        *("--no-report", "--max-actors", "1", "--json", "--metrics-file", str(textfiles[0] / "night.prom")),
    )
    done = CliRunner().invoke(app, list(night))
    assert done.exit_code == 0, done.stderr
    (record,) = json.loads(done.stdout)
    of = f'{{scores="{out.root}", model="{record["model_id"]}"'
    counts = {(status,): scans for status, scans in record["counts"].items()}
    assert sum(counts.values()) == record["planned"] > 0
    reasons = {(reason,): scans for reason, scans in record["reasons"].items()}
    for job in ("ray", "node"):
        at = f'{of}, job="{job}"}}'
        prometheus.wait_for(f"max by (status) (max_over_time(rayscan_scans_total{at}[10m]))", counts)
        assert prometheus.ask(f"max by (reason) (max_over_time(rayscan_unscored_total{at}[10m])) > 0") == reasons
        first = prometheus.ask(f"min by (status) (min_over_time(rayscan_scans_total{at}[10m]))")
        assert first == dict.fromkeys(counts, 0), f"{job}: a series began at more than 0, so its increase is too small"
        read = prometheus.ask(f"sum(max_over_time(rayscan_read_total{at}[10m]))")
        assert read == {(): record["planned"]}
    at = f'{of}, job="node"}}'
    stages = prometheus.ask(f"max by (stage) (rayscan_stage_seconds_total{at})")
    assert {f"{stage}": round(seconds, 3) for (stage,), seconds in stages.items()} == record["stage_seconds"]
    for name, value in (("planned", record["planned"]), ("backlog", 0), ("exit_code", 0), ("running", 0)):
        prometheus.wait_for(f"sum(rayscan_{name}{at})", {(): value})
    assert prometheus.ask(f"max by (status) (rayscan_last_run_scans{at})") == counts
    assert prometheus.ask(f"rayscan_lease_info{at}") == {}

    idle = CliRunner().invoke(app, list(night))
    assert (idle.exit_code, json.loads(idle.stdout)[0]["planned"]) == (0, 0)
    prometheus.wait_for(f"sum(changes(rayscan_last_success_timestamp_seconds{at}[10m]))", {(): 1})
    prometheus.wait_for('ALERTS{alertname=~"Rayscan.*"}', {})
