"""Every manifest is one that Kubernetes and KubeRay take, and what they do not take is refused here as there."""

import copy
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.cluster.deploy.kustomize import KUBERAY, OVERLAYS, Manifest, build
from tests.cluster.deploy.schemas import RAY_KINDS, check_kuberay, check_kubernetes, crds, is_kubernetes_own

EVERY = {
    f"{overlay}-{manifest['kind']}-{manifest['metadata']['name']}": manifest
    for overlay in OVERLAYS
    for manifest in build(KUBERAY / "overlays" / overlay)
}
RAY = {name: manifest for name, manifest in EVERY.items() if manifest["kind"] in RAY_KINDS}
KUBERNETES = {name: manifest for name, manifest in EVERY.items() if is_kubernetes_own(manifest)}


@pytest.fixture(scope="module")
def folder() -> Path:
    found = crds()
    if found is None:
        pytest.skip("RAYSCAN_KUBERAY_CRDS names no folder of KubeRay's definitions")
    return found


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_takes_it(name: str) -> None:
    check_kubernetes(KUBERNETES[name])


@pytest.mark.parametrize("name", RAY)
def test_kuberay_takes_it(name: str, folder: Path) -> None:
    check_kuberay(RAY[name], folder)


def test_each_kind_of_ray_is_among_them() -> None:
    assert {manifest["kind"] for manifest in RAY.values()} == set(RAY_KINDS)


def without_schedule(manifest: Manifest) -> None:
    del manifest["spec"]["schedule"]


def misspelt(manifest: Manifest) -> None:
    manifest["spec"]["concurencyPolicy"] = manifest["spec"].pop("concurrencyPolicy")


def word_for_number(manifest: Manifest) -> None:
    manifest["spec"]["startingDeadlineSeconds"] = "an hour"


@pytest.mark.parametrize("harm", [without_schedule, misspelt, word_for_number])
def test_kubernetes_refuses(harm: Callable[[Manifest], None]) -> None:
    manifest = copy.deepcopy(EVERY["nightly-CronJob-rayscan-night"])
    harm(manifest)
    with pytest.raises(jsonschema.ValidationError):
        check_kubernetes(manifest)


def unknown(manifest: Manifest) -> None:
    manifest["spec"]["rayClusterSpec"]["enableAutoscaling"] = True


def unknown_in_a_container(manifest: Manifest) -> None:
    pod = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    pod["containers"][0]["imagePullPolice"] = "Always"


def autoscaler_of_tomorrow(manifest: Manifest) -> None:
    manifest["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] = "v3"


def without_a_head(manifest: Manifest) -> None:
    del manifest["spec"]["rayClusterSpec"]["headGroupSpec"]


@pytest.mark.parametrize("harm", [unknown, unknown_in_a_container, autoscaler_of_tomorrow, without_a_head])
def test_kuberay_refuses(harm: Callable[[Manifest], None], folder: Path) -> None:
    manifest = copy.deepcopy(EVERY["search-RayJob-rayscan-search"])
    harm(manifest)
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay(manifest, folder)


def test_a_raycronjob_has_no_policy_for_nights_that_overlap(folder: Path) -> None:
    """Why the lease must guard; the day this fails, overlays/raycron can say Forbid."""
    manifest = copy.deepcopy(EVERY["raycron-RayCronJob-rayscan-night"])
    manifest["spec"]["concurrencyPolicy"] = "Forbid"
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicy"):
        check_kuberay(manifest, folder)


def test_kuberay_takes_any_word_as_a_mode(folder: Path) -> None:
    """Why `checks.py` looks at it."""
    manifest = copy.deepcopy(EVERY["search-RayJob-rayscan-search"])
    manifest["spec"]["submissionMode"] = "Nonsense"
    check_kuberay(manifest, folder)


def test_the_pod_monitor_names_ports_that_there_are() -> None:
    """Its definition comes with the Prometheus operator and is not at hand here."""
    monitor = EVERY["gpu-PodMonitor-rayscan"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    head = EVERY["gpu-RayCluster-rayscan"]["spec"]["headGroupSpec"]["template"]
    ports = {port["name"] for port in head["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert monitor["spec"]["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
