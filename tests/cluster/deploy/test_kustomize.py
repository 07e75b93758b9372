"""The small kustomize of these tests gives what the real one gives."""

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster.deploy.kustomize import KUBERAY, OVERLAYS, Manifest, build

KUBECTL = shutil.which("kubectl")


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Any]:
    named = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    assert len(named) == len(manifests)
    return named


@pytest.mark.skipif(KUBECTL is None, reason="no kubectl here to compare with")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_builds_what_kubectl_builds(overlay: str) -> None:
    built = subprocess.run(
        [str(KUBECTL), "kustomize", str(KUBERAY / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    assert by_name(build(KUBERAY / "overlays" / overlay)) == by_name(list(yaml.safe_load_all(built.stdout)))


def test_every_overlay_is_tested() -> None:
    assert {folder.name for folder in (KUBERAY / "overlays").iterdir()} == set(OVERLAYS)


def test_every_file_is_used() -> None:
    named = {
        file.parent / name
        for file in KUBERAY.rglob("kustomization.yaml")
        for key in ("resources", "configMapGenerator")
        for entry in yaml.safe_load(file.read_text()).get(key, ())
        for name in ([entry] if isinstance(entry, str) else entry.get("files", []))
    }
    assert {file for file in KUBERAY.rglob("*.*") if file.is_file() and file.name != "kustomization.yaml"} <= named
