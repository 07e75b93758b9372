"""What the Kubernetes at hand knows of KubeRay: the check of `rayscan doctor` that asks no node of Ray."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final

from cluster.findings import Finding, State

NODE: Final = "kubernetes"
VERSION: Final = "v1"
"""Of the definitions that the files in `cluster/deploy/kuberay` are written for."""
NEEDED: Final = ("rayclusters.ray.io", "rayjobs.ray.io")
WANTED_BY_ONE_OVERLAY: Final = "raycronjobs.ray.io"
_SECONDS: Final = 20
_INSTALL: Final = "install the KubeRay operator, 1.6 or newer, together with its definitions"


def examine_kubernetes(*, in_pod: bool) -> list[Finding]:
    """Which versions of KubeRay's definitions are served, where `kubectl` is installed and names a cluster.

    `in_pod` says that this process runs in Kubernetes, where what is missing is a fault; elsewhere it is a warning, as
    people have `kubectl` for other clusters, too.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None or not (in_pod or _names_a_cluster(kubectl)):
        return []
    asked = _run(kubectl, "get", "customresourcedefinitions", "--output=json", "--request-timeout=10s")
    if asked is None or asked.returncode:
        said = asked.stderr.strip().splitlines() if asked else []
        return [_finding("warn", said[-1] if said else "kubectl does not answer", "check `kubectl get crd` by hand")]
    found = {item["metadata"]["name"]: item["spec"] for item in json.loads(asked.stdout)["items"]}
    return [*_served(found, "fail" if in_pod else "warn"), *_token_is_known(found)]


def _served(found: Mapping[str, Any], fault: State) -> list[Finding]:
    ours = {name: _versions(found[name]) for name in (*NEEDED, WANTED_BY_ONE_OVERLAY) if name in found}
    told = ", ".join(f"{name} {' '.join(versions) or 'not served'}" for name, versions in ours.items())
    lacking = [name for name in NEEDED if VERSION not in ours.get(name, ())]
    if lacking:
        return [_finding(fault, f"{', '.join(lacking)}: no {VERSION} ({told or 'none of KubeRay'})", _INSTALL)]
    without = (
        "" if WANTED_BY_ONE_OVERLAY in ours else f"; no {WANTED_BY_ONE_OVERLAY}, which only overlays/raycron needs"
    )
    return [_finding("ok", told + without)]


def _token_is_known(found: Mapping[str, Any]) -> list[Finding]:
    """Kubernetes drops a field that a definition does not have without a word; dropping this one opens the cluster."""
    versions = found.get(NEEDED[0], {}).get("versions", [])
    schemas = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == VERSION]
    if not schemas or "authOptions" in schemas[0]["properties"]["spec"]["properties"]:
        return []
    return [_finding("fail", f"{NEEDED[0]} knows no authOptions: the token would be dropped silently", _INSTALL)]


def _versions(definition: Mapping[str, Any]) -> list[str]:
    return [version["name"] for version in definition["versions"] if version["served"]]


def _names_a_cluster(kubectl: str) -> bool:
    """Whether kubectl is configured at all: unconfigured it tries this machine, and fails."""
    asked = _run(kubectl, "config", "current-context")
    return asked is not None and asked.returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    """None if it does not end."""
    try:
        return subprocess.run(  # noqa: S603 (a program of the person's own PATH, with fixed arguments)
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None


def _finding(state: State, found: str, mend: str = "") -> Finding:
    return Finding(node=NODE, check="crds", state=state, found=found, mend=mend)
