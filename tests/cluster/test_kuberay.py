"""What `rayscan doctor` says of Kubernetes: a small program takes the place of kubectl, and prints what it would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.findings import Finding
from cluster.kuberay import examine_kubernetes
from tests.cluster.deploy.schemas import crds

Kubectl = Callable[..., None]


def definition(name: str, *, version: str = "v1", served: bool = True, knows_token: bool = True) -> dict[str, Any]:
    """As `kubectl get crd -o json` gives one of KubeRay's, as far as it matters here."""
    spec = {"type": "object", "properties": {"authOptions": {"type": "object"}} if knows_token else {}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    return {
        "metadata": {"name": name},
        "spec": {
            "group": "ray.io",
            "versions": [{"name": version, "served": served, "storage": True, "schema": schema}],
        },
    }


CLUSTERS, JOBS, CRON_JOBS = (definition(f"{name}.ray.io") for name in ("rayclusters", "rayjobs", "raycronjobs"))
CERTIFICATES = definition("certificates.cert-manager.io")


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """Puts a kubectl on the PATH that knows these definitions, or fails so."""

    def install(*items: dict[str, Any], fails: str = "", configured: bool = True) -> None:
        (tmp_path / "answer.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        (tmp_path / "kubectl").write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = config ]; then exit {int(not configured)}; fi\n'
            '[ "$1 $2 $3" = "get customresourcedefinitions --output=json" ] || exit 64\n'
            + (f"echo '{fails}' >&2; exit 1\n" if fails else f"exec /bin/cat {tmp_path / 'answer.json'}\n")
        )
        (tmp_path / "kubectl").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    return install


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.node, finding.check) == ("kubernetes", "crds")
    assert bool(finding.mend) == (finding.state != "ok")
    return finding


@pytest.mark.usefixtures("kubectl")
def test_without_kubectl_nothing_is_said() -> None:
    assert examine_kubernetes(in_pod=True) == []


def test_a_kubectl_that_names_no_cluster_says_nothing_outside_one(kubectl: Kubectl) -> None:
    kubectl(fails="connection refused", configured=False)
    assert examine_kubernetes(in_pod=False) == []
    assert only(examine_kubernetes(in_pod=True)).state == "warn"


def test_the_versions_that_are_served_are_told(kubectl: Kubectl) -> None:
    kubectl(CERTIFICATES, CLUSTERS, JOBS, CRON_JOBS)
    finding = only(examine_kubernetes(in_pod=False))
    assert (finding.state, finding.found) == ("ok", "rayclusters.ray.io v1, rayjobs.ray.io v1, raycronjobs.ray.io v1")


def test_an_operator_without_cron_jobs_is_fit_for_all_but_one_overlay(kubectl: Kubectl) -> None:
    kubectl(CLUSTERS, JOBS)
    finding = only(examine_kubernetes(in_pod=False))
    assert finding.state == "ok"
    assert finding.found.endswith("no raycronjobs.ray.io, which only overlays/raycron needs")


@pytest.mark.parametrize(
    "items",
    [
        (CERTIFICATES,),
        (CLUSTERS,),
        (definition("rayclusters.ray.io", version="v1alpha1"), JOBS),
        (definition("rayclusters.ray.io", served=False), JOBS),
    ],
    ids=["none of KubeRay", "no RayJob", "an old version", "not served"],
)
def test_what_is_missing_is_a_fault_in_kubernetes_and_else_a_warning(
    kubectl: Kubectl, items: tuple[dict[str, Any], ...]
) -> None:
    kubectl(*items)
    assert only(examine_kubernetes(in_pod=True)).state == "fail"
    assert only(examine_kubernetes(in_pod=False)).state == "warn"


def test_an_operator_that_would_drop_the_token_is_a_fault(kubectl: Kubectl) -> None:
    kubectl(definition("rayclusters.ray.io", knows_token=False), JOBS)
    served, token = examine_kubernetes(in_pod=False)
    assert served.state == "ok"
    assert (token.state, token.found[:40]) == ("fail", "rayclusters.ray.io knows no authOptions:")


def test_what_kubectl_complains_of_is_passed_on(kubectl: Kubectl) -> None:
    kubectl(fails="Error from server (Forbidden): customresourcedefinitions is forbidden")
    finding = only(examine_kubernetes(in_pod=False))
    assert finding.state == "warn"
    assert "Forbidden" in finding.found


def test_kuberays_own_definitions_pass(kubectl: Kubectl) -> None:
    folder = crds()
    if folder is None:
        pytest.skip("RAYSCAN_KUBERAY_CRDS names no folder of definitions")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    kubectl(*(yaml.load(file.read_text(), loader) for file in sorted(folder.glob("*.yaml"))))
    assert only(examine_kubernetes(in_pod=True)).state == "ok"
