"""Manifests against schemas, without a network: Kubernetes', and KubeRay's where RAYSCAN_KUBERAY_CRDS names them."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.cluster.deploy.kustomize import Manifest

KUBERNETES = "1.37"
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")
_NOT_KUBERNETES = (*RAY_KINDS, "PodMonitor")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def crds() -> Path | None:
    """The folder with KubeRay's rayclusters.yaml, rayjobs.yaml and raycronjobs.yaml."""
    folder = os.environ.get("RAYSCAN_KUBERAY_CRDS")
    return Path(folder) if folder else None


def is_kubernetes_own(manifest: Manifest) -> bool:
    """Whether kubernetes-validate has its schema."""
    return manifest["kind"] not in _NOT_KUBERNETES


def check_kubernetes(manifest: Manifest) -> None:
    """Raise `jsonschema.ValidationError` unless Kubernetes takes the manifest; it takes no unknown field."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def check_kuberay(manifest: Manifest, folder: Path) -> None:
    """Raise `jsonschema.ValidationError` unless KubeRay's definition takes the manifest; it takes no unknown field."""
    group, _, version = manifest["apiVersion"].partition("/")
    assert group == "ray.io"
    _validator(folder, manifest["kind"], version).validate(manifest)


@cache
def _validator(folder: Path, kind: str, version: str) -> jsonschema.Draft7Validator:
    definition = yaml.load((folder / f"{kind.lower()}s.yaml").read_text(), _LOADER)
    assert definition["spec"]["names"]["kind"] == kind
    (schema,) = [
        found["schema"]["openAPIV3Schema"] for found in definition["spec"]["versions"] if found["name"] == version
    ]
    strict = _strict(schema)
    strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    strict["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of which a definition says nothing
    return jsonschema.Draft7Validator(strict)


def _strict(schema: Any) -> Any:
    """The schema as JSON Schema has it; an object with known properties takes no others."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: _strict(one) for name, one in value.items()}
        elif not key.startswith("x-kubernetes-"):
            plain[key] = value if key in ("default", "enum", "required") else _strict(value)
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = ["integer", "string"]
        plain.pop("anyOf", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        plain.setdefault("additionalProperties", False)
    return plain
