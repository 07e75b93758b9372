"""The immutable model: a folder whose every byte stands behind one identity.

    bundle.json          format, specification, lineage, SHA-256 of the other files, model_id
    weights.safetensors  never pickle: loading a model must not run code
    calibration.json     temperature and locked operating points
    evaluation.json      how it did on the validation films
    card.html            the same for people

model_id is a hash of bundle.json, which holds the hashes of the rest: change a byte anywhere and either the identity or
a hash no longer fits, and loading refuses. Other files may lie beside (a ledger of later evaluations); they are not the
model. This module knows local folders only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.calibration import Calibration
from models.card import render_card
from models.classifier import ScanClassifier
from models.errors import BundleError, InputError
from models.preprocess import Preprocess
from models.spec import ModelSpec
from models.zoo import build

FORMAT: Final = 1
MANIFEST: Final = "bundle.json"
WEIGHTS: Final = "weights.safetensors"
CALIBRATION: Final = "calibration.json"
EVALUATION: Final = "evaluation.json"
CARD: Final = "card.html"
FILES: Final = (WEIGHTS, CALIBRATION, EVALUATION, CARD)
"""Everything but the manifest, which is written last: a folder without it is no bundle."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle in a local folder; weights are read, and verified again, when asked for."""

    folder: Path
    model_id: str
    spec: ModelSpec
    calibration: Calibration
    evaluation: Mapping[str, Any]
    lineage: Mapping[str, Any]
    hashes: Mapping[str, str]
    """SHA-256 of each of `FILES`."""

    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode. Raises `BundleError`."""
        data = _read(self.folder, WEIGHTS, self.hashes[WEIGHTS])
        network = build(self.spec)
        try:
            network.load_state_dict(safetensors.torch.load(data))
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(
                f"{self.folder / WEIGHTS} does not fit the {self.spec.name} network of this version of rayscan: {error}"
            ) from error
        return network.eval()

    def classifier(self) -> ScanClassifier:
        """Preprocessing, network and temperature as one module, in evaluation mode."""
        classifier = ScanClassifier(
            Preprocess(self.spec.preprocessing), self.network(), temperature=self.calibration.temperature
        )
        return classifier.eval()


def save_bundle(
    folder: Path,
    *,
    spec: ModelSpec,
    state_dict: Mapping[str, Tensor],
    calibration: Calibration,
    evaluation: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> Bundle:
    """Write a bundle into a folder, made when absent. `evaluation` and `lineage` hold plain JSON values.

    Raises `InputError` when a bundle is there already: bundles do not change.
    """
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds a bundle already, and bundles do not change; choose another folder")
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    contents = {
        WEIGHTS: safetensors.torch.save(weights),
        CALIBRATION: _json(calibration.to_json()),
        EVALUATION: _json(evaluation),
        CARD: render_card(spec, calibration, evaluation, lineage).encode(),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = {"format": FORMAT, "spec": spec.to_json(), "lineage": dict(lineage), "files": hashes}
    contents[MANIFEST] = _json({**manifest, "model_id": _identity(manifest)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return load_bundle(folder)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and verify every byte of it. Raises `BundleError` naming the file that does not fit."""
    path = folder / MANIFEST
    manifest = _parse(path, _read(folder, MANIFEST, None))
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{path} is of bundle format {manifest.get('format')}, this rayscan reads {FORMAT};"
            " install the version that made it"
        )
    model_id = manifest.pop("model_id", None)
    if model_id != _identity(manifest):
        raise BundleError(f"{path} was changed after it was made; fetch the bundle again")
    hashes = manifest.get("files", {})
    if not isinstance(hashes, dict) or set(hashes) != set(FILES):
        raise BundleError(f"{path} does not name the files of a bundle: {', '.join(FILES)}")
    contents = {name: _read(folder, name, hashes[name]) for name in FILES}
    try:
        spec = ModelSpec.from_json(manifest["spec"])
        calibration = Calibration.from_json(_parse(folder / CALIBRATION, contents[CALIBRATION]))
    except (InputError, KeyError) as error:
        raise BundleError(f"{folder}: {error}; install the version of rayscan that made it") from error
    return Bundle(
        folder=folder,
        model_id=model_id,
        spec=spec,
        calibration=calibration,
        evaluation=_parse(folder / EVALUATION, contents[EVALUATION]),
        lineage=manifest.get("lineage", {}),
        hashes=hashes,
    )


def _read(folder: Path, name: str, sha256: str | None) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder / name} is missing; {folder} is not a whole bundle") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{folder / name} was changed after the bundle was made; fetch the bundle again")
    return data


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON; fetch the bundle again") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} is not a JSON object; fetch the bundle again")
    return value


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _identity(manifest: Mapping[str, Any]) -> str:
    """16 hex digits of BLAKE2b over the canonical JSON of the manifest without its model_id."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
