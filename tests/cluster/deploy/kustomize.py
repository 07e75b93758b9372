"""As much of kustomize as `cluster/deploy/kuberay` uses, so that its tests need no program that may not be there.

Resources and components, a ConfigMap of files or literals without a suffix, JSON patches, replacements of a whole
field, images, the namespace, and `local-config`, which keeps a resource out of what is built. Anything else in a
kustomization is an error. `test_kustomize.py` compares it with the real one where there is a kubectl.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]

KUBERAY = Path(__file__).parents[3] / "cluster" / "deploy" / "kuberay"
OVERLAYS = ("cpu", "gpu", "gcs", "nightly", "raycron", "search")

_LOCAL = "config.kubernetes.io/local-config"
_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "configMapGenerator",
    "generatorOptions",
    "patches",
    "replacements",
    "images",
}


def build(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize FOLDER` prints, in another order."""
    return [manifest for manifest in _gathered(folder, []) if not _is_local(manifest)]


def read(file: Path) -> list[Manifest]:
    """The documents of a YAML file, none sharing a part with another."""
    return [copy.deepcopy(document) for document in yaml.safe_load_all(file.read_text()) if document]


def _gathered(folder: Path, below: list[Manifest]) -> list[Manifest]:
    (kustomization,) = read(folder / "kustomization.yaml")
    if unknown := kustomization.keys() - _KNOWN:
        raise NotImplementedError(f"{folder}: {unknown}")
    manifests = below
    for name in kustomization.get("resources", ()):
        path = folder / name
        # A base that ends leaves out what is local to it, as the real one does.
        manifests = manifests + (build(path) if path.is_dir() else read(path))
    for name in kustomization.get("components", ()):
        manifests = _gathered(folder / name, manifests)
    manifests += _config_maps(folder, kustomization)
    for patch in kustomization.get("patches", ()):
        _patch(manifests, patch)
    for replacement in kustomization.get("replacements", ()):
        _replace(manifests, replacement)
    for image in kustomization.get("images", ()):
        _rename(manifests, image)
    if namespace := kustomization.get("namespace"):
        for manifest in manifests:
            _move(manifest, namespace)
    return manifests


def _is_local(manifest: Manifest) -> bool:
    return bool(manifest["metadata"].get("annotations", {}).get(_LOCAL) == "true")


def _config_maps(folder: Path, kustomization: Manifest) -> Iterator[Manifest]:
    wanted = kustomization.get("configMapGenerator", ())
    if wanted and kustomization.get("generatorOptions") != {"disableNameSuffixHash": True}:
        raise NotImplementedError(f"{folder}: a name with a suffix")
    for one in wanted:
        data = {name: (folder / name).read_text() for name in one.get("files", ())}
        data |= dict(literal.split("=", 1) for literal in one.get("literals", ()))
        metadata = {key: one[key] for key in ("name", "namespace") if key in one}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _chosen(manifests: Sequence[Manifest], by: Manifest) -> Manifest:
    (one,) = [one for one in manifests if one["kind"] == by["kind"] and one["metadata"]["name"] == by["name"]]
    return one


def _patch(manifests: list[Manifest], patch: Manifest) -> None:
    target = _chosen(manifests, patch["target"])
    patched = jsonpatch.apply_patch(target, yaml.safe_load(patch["patch"]))
    manifests[manifests.index(target)] = patched


def _replace(manifests: list[Manifest], replacement: Manifest) -> None:
    source = replacement["source"]
    value = _chosen(manifests, source)[source["fieldPath"]]
    for target in replacement["targets"]:
        (path,) = target["fieldPaths"]
        *outer, last = path.split(".")
        place = _chosen(manifests, target["select"])
        for name in outer:
            place = place[name]
        place[last] = copy.deepcopy(value)


def _rename(part: Any, image: Manifest) -> None:
    if isinstance(part, list):
        for one in part:
            _rename(one, image)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("containers", "initContainers"):
                for container in value:
                    if re.fullmatch(re.escape(image["name"]) + r"(:[\w.-]+)?", container["image"]):
                        container["image"] = f"{image['newName']}:{image['newTag']}"
            _rename(value, image)


def _move(manifest: Manifest, namespace: str) -> None:
    if manifest["kind"] == "Namespace":
        manifest["metadata"]["name"] = namespace
    else:
        manifest["metadata"]["namespace"] = namespace
