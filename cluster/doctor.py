"""`rayscan doctor`: is every node of the cluster fit to work, and if not, what mends it?

One small actor is pinned to each node. It claims no CPU, so busy nodes, and nodes that take no work, are examined too.
It reports facts (`node_facts.py`), which are judged (`findings.py`) beside those of the driver.
"""

import time
from typing import Any, Final

from cluster.findings import Finding, judge, judge_head, judge_metrics, judge_ports, judge_storage, silence
from cluster.kuberay import examine_kubernetes
from cluster.node_facts import NodeFacts, NodeProbe
from pipelines.capacity import HEAD

ANSWER_SECONDS: Final = 120
"""A node that has not reported by then fails. A worker's first start there unpacks our code and imports torch."""


def examine(uri: str | None = None, dashboard_url: str | None = None) -> list[Finding]:
    """Check every living node of the connected cluster; with a URI, also whether each can list that store.

    Ray must be connected. `dashboard_url` is as the session has it; None: there is no dashboard. The findings come node
    by node, the order of the checks is the same on each; Kubernetes' own come last, where `kubectl` is at hand.
    """
    import ray

    driver = NodeProbe().facts()
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    probes = [_probe_on(node["NodeID"]) for node in nodes]
    reports = [probe.facts.remote() for probe in probes]  # all nodes start their workers at the same time
    others = [_ports_but(node, nodes) for node in nodes]
    knocks = [probe.silent.remote(ports) for probe, ports in zip(probes, others, strict=True)]
    findings: list[Finding] = []
    for node, probe, report, ports, knock in zip(nodes, probes, reports, others, knocks, strict=True):
        try:
            facts, silent = _answer(report), _answer(knock)  # both, before the clock is asked: it must answer at once
            reached = judge_ports(node["NodeManagerAddress"], len(ports), silent)
            findings += _examine_node(node, probe, facts, driver, reached, uri)
            if HEAD in node["Resources"]:
                findings += _examine_head(node, probe, dashboard_url)
        except ray.exceptions.RayError as error:
            findings.append(silence(node["NodeManagerAddress"], error, ANSWER_SECONDS))
    return findings + examine_kubernetes(in_pod=driver.in_pod)


def _ports_but(node: dict[str, Any], nodes: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Hosts and ports at which all other nodes must answer this one."""
    return [
        (other["NodeManagerAddress"], other[port])
        for other in nodes
        if other["NodeID"] != node["NodeID"]
        for port in ("NodeManagerPort", "ObjectManagerPort")
    ]


def _examine_node(
    node: dict[str, Any], probe: Any, facts: NodeFacts, driver: NodeFacts, reached: Finding, uri: str | None
) -> list[Finding]:
    address, metrics = node["NodeManagerAddress"], node["MetricsExportPort"]
    findings = judge(address, facts, driver, skew=_clock_skew(probe), ray_gpus=int(node["Resources"].get("GPU", 0)))
    findings.append(reached)
    findings.append(judge_metrics(address, metrics, answers=not _answer(probe.silent.remote([(address, metrics)]))))
    if uri:
        findings.append(judge_storage(address, uri, *_answer(probe.reach.remote(uri))))
    return findings


def _examine_head(node: dict[str, Any], probe: Any, dashboard_url: str | None) -> list[Finding]:
    port = int(dashboard_url.rpartition(":")[2]) if dashboard_url else None
    dashboard = None if port is None else _answer(probe.dashboard.remote(port))
    return judge_head(node["NodeManagerAddress"], dashboard, node["Labels"])


def _probe_on(node_id: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(NodeProbe).options(num_cpus=0, scheduling_strategy=pinned).remote()


def _answer(reference: Any) -> Any:
    import ray

    return ray.get(reference, timeout=ANSWER_SECONDS)


def _clock_skew(probe: Any) -> float:
    """Seconds by which the node's clock is ahead: measured at the middle of a round trip to a running worker."""
    asked = time.time()
    there: float = _answer(probe.clock.remote())
    return there - (asked + time.time()) / 2
