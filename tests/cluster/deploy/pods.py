"""The pods, clusters and jobs that a set of manifests makes, wherever they stand in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.deploy.kustomize import Manifest


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod that somebody will make of a manifest."""

    where: str
    role: str
    """head, worker, submitter or launcher."""
    spec: dict[str, Any]
    labels: dict[str, str]

    @property
    def container(self) -> dict[str, Any]:
        one: dict[str, Any] = self.spec["containers"][0]
        return one


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def jobs(manifests: Sequence[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every spec of a RayJob, with the name of what holds it."""
    for manifest in of_kind(manifests, "RayJob"):
        yield name_of(manifest), manifest["spec"]
    for manifest in of_kind(manifests, "RayCronJob"):
        yield name_of(manifest), manifest["spec"]["jobTemplate"]


def clusters(manifests: Sequence[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every spec of a RayCluster, with the name of what holds it."""
    for manifest in of_kind(manifests, "RayCluster"):
        yield name_of(manifest), manifest["spec"]
    for name, job in jobs(manifests):
        yield name, job["rayClusterSpec"]


def groups(manifests: Sequence[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in clusters(manifests):
        for group in cluster["workerGroupSpecs"]:
            yield f"{name}, group {group['groupName']}", group


def pods(manifests: Sequence[Manifest]) -> Iterator[Pod]:
    def pod(where: str, role: str, template: dict[str, Any]) -> Pod:
        labels = template.get("metadata", {}).get("labels", {})
        return Pod(where=f"{where}, {role}", role=role, spec=template["spec"], labels=labels)

    for name, cluster in clusters(manifests):
        yield pod(name, "head", cluster["headGroupSpec"]["template"])
    for name, group in groups(manifests):
        yield pod(name, "worker", group["template"])
    for name, job in jobs(manifests):
        if "submitterPodTemplate" in job:
            yield pod(name, "submitter", job["submitterPodTemplate"])
    for manifest in of_kind(manifests, "CronJob"):
        yield pod(name_of(manifest), "launcher", manifest["spec"]["jobTemplate"]["spec"]["template"])


def containers(manifests: Sequence[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container, and the autoscaler's, which KubeRay makes of its options."""
    for pod in pods(manifests):
        for container in (*pod.spec["containers"], *pod.spec.get("initContainers", ())):
            yield f"{pod.where}, {container['name']}", container
    for name, cluster in clusters(manifests):
        yield f"{name}, autoscaler", cluster.get("autoscalerOptions", {})
