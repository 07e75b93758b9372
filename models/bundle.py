"""A bundle, the immutable model: a folder with one identity, which covers every byte.

    bundle.json          format, specification, lineage, SHA-256 of the other files, model_id
    weights.safetensors  of the network and its familiarity; never pickle: loading a model must not run code
    calibration.json     temperature and locked operating points
    evaluation.json      how it did on the validation films
    card.html            the same for people
    graph.xml, graph.bin the whole model as an OpenVINO graph in float32; absent where OpenVINO cannot take it

model_id is a hash of bundle.json, which holds the hashes of the rest: change a byte anywhere and either the identity or
a hash no longer fits, and loading refuses. Other files may lie beside; they are not the model: a ledger of later
evaluations, and in agreements/ how engines of other machines were found to agree with it later. Those lie outside the
identity, because a model that is compared on one more machine is the same model. Whoever may write there can allow an
engine, but not change the model. This module knows local folders only.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from models.errors import BundleError, InputError
from models.intended_use import IntendedUse
from models.networks.tensor_names import FAMILIARITY, LIMIT
from models.spec import ModelSpec
from models.statistics.calibration import Calibration

if TYPE_CHECKING:  # scoring by OpenVINO reads bundles without torch, which takes two seconds to import
    from torch import Tensor, nn

    from models.networks.classifier import ScanClassifier
    from models.networks.familiarity import Familiarity

FORMAT: Final = 3
"""2 knew a film by the network's last features only, which hardly tell children from adults. 1 had no familiarity and
no graph, and its `dct` films were decoded at twice their size."""
MANIFEST: Final = "bundle.json"
WEIGHTS: Final = "weights.safetensors"
CALIBRATION: Final = "calibration.json"
EVALUATION: Final = "evaluation.json"
CARD: Final = "card.html"
FILES: Final = (WEIGHTS, CALIBRATION, EVALUATION, CARD)
"""Everything every bundle has but the manifest, which is written last: a folder without it is no bundle."""
GRAPH: Final = ("graph.xml", "graph.bin")
AGREEMENTS: Final = "agreements"
"""Folder beside the files: `<time>-<random>.json`, as `pipelines.bundles.record_agreements` writes it."""


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
    """SHA-256 of each of its files but the manifest."""
    later: Sequence[Mapping[str, Any]] = field(default=())
    """What lies in AGREEMENTS, oldest first: `engines` (name -> agreement), `gpu`, `dataset`, `when`."""

    @property
    def name(self) -> str:
        """What people call it: see `name_of`."""
        return name_of(self.spec, self.lineage)

    @property
    def intended_use(self) -> IntendedUse:
        """Whose films it was made for."""
        return IntendedUse.from_json(self.lineage.get("intended_use", {}))

    @property
    def agreements(self) -> list[Mapping[str, Mapping[str, Any]]]:
        """How engines were found to agree with it, by their names: at promotion, then later, oldest first."""
        promotion = self.evaluation.get("val", {}).get("engines", {})
        return [promotion, *(entry["engines"] for entry in self.later)]

    def graph(self) -> tuple[bytes, bytes] | None:
        """XML and weights of the OpenVINO graph; None without one. Raises `BundleError`."""
        if GRAPH[0] not in self.hashes:
            return None
        xml, weights = (_read(self.folder, name, self.hashes[name]) for name in GRAPH)
        return xml, weights

    def distance_limit(self) -> float:
        """The distance from the training films beyond which a film is refused; infinite for a model without one."""
        from safetensors import safe_open  # noqa: PLC0415 (see above)

        with safe_open(self.folder / WEIGHTS, framework="numpy") as tensors:
            return float(tensors.get_tensor(LIMIT)) if LIMIT in tensors.keys() else math.inf  # noqa: SIM118

    def network(self) -> "nn.Module":
        """The network with its weights, in evaluation mode. Raises `BundleError`."""
        return self._modules()[0]

    def classifier(self) -> "ScanClassifier":
        """Preprocessing, network, temperature and familiarity as one module, in evaluation mode."""
        from models.networks.classifier import ScanClassifier  # noqa: PLC0415 (see above)
        from models.networks.preprocess import Preprocess  # noqa: PLC0415

        network, familiarity = self._modules()
        classifier = ScanClassifier(
            Preprocess(self.spec.preprocessing),
            network,
            calibration=self.calibration,
            familiarity=familiarity,
        )
        return classifier.eval()

    def _modules(self) -> "tuple[nn.Module, Familiarity | None]":
        import safetensors.torch  # noqa: PLC0415 (see above)

        from models.networks.familiarity import Familiarity  # noqa: PLC0415
        from models.networks.zoo import build  # noqa: PLC0415

        data = _read(self.folder, WEIGHTS, self.hashes[WEIGHTS])
        network = build(self.spec)
        try:
            tensors = safetensors.torch.load(data)
            known = {n.removeprefix(FAMILIARITY): tensors.pop(n) for n in list(tensors) if n.startswith(FAMILIARITY)}
            network.load_state_dict(tensors)
            familiarity = Familiarity.from_state(known) if known else None
        except (safetensors.SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise BundleError(
                f"{self.folder / WEIGHTS} does not fit the {self.spec.name} network of this version of rayscan: {error}"
            ) from error
        return network.eval(), familiarity


def name_of(spec: ModelSpec, lineage: Mapping[str, Any]) -> str:
    """The name of the recipe that a model was made by, or of its trial in a search; else of its architecture."""
    recipe = lineage.get("recipe")
    if isinstance(recipe, Mapping) and recipe.get("name"):
        return str(recipe["name"])
    return f"trial {lineage['trial']} ({spec.name})" if "trial" in lineage else spec.name


class CardRenderer(Protocol):
    """Makes the HTML of a model card from what the bundle holds."""

    def __call__(
        self,
        spec: ModelSpec,
        calibration: Calibration,
        evaluation: Mapping[str, Any],
        lineage: Mapping[str, Any],
        *,
        weights: str,
    ) -> str:
        """The page; `weights` is the SHA-256 of their file."""
        ...


def save_bundle(
    folder: Path,
    *,
    spec: ModelSpec,
    state_dict: "Mapping[str, Tensor]",
    calibration: Calibration,
    evaluation: Mapping[str, Any],
    lineage: Mapping[str, Any],
    render_card: CardRenderer,
    familiarity: "Familiarity | None" = None,
    graph: tuple[bytes, bytes] | None = None,
) -> Bundle:
    """Write a bundle into a folder, made when absent. `evaluation` and `lineage` hold plain JSON values.

    `render_card` makes the page for people (`pipelines/pages/card.py`). `graph` are the XML and weights that
    `models.engines.export.export_graph` gives. Raises `InputError` when a bundle is there already: bundles do not
    change.
    """
    import safetensors.torch  # noqa: PLC0415 (see above)

    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds a bundle already, and bundles do not change; choose another folder")
    tensors = dict(state_dict)
    if familiarity is not None:
        tensors |= {f"{FAMILIARITY}{name}": tensor for name, tensor in familiarity.state_dict().items()}
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    contents = {
        WEIGHTS: safetensors.torch.save(weights),
        CALIBRATION: _json(calibration.to_json()),
        EVALUATION: _json(evaluation),
    }
    # all in the order in which it will be read again, so that a page made of it then is the same
    card = render_card(
        ModelSpec.from_json(json.loads(_json(spec.to_json()))),
        calibration,
        json.loads(contents[EVALUATION]),
        json.loads(_json(lineage)),
        weights=hashlib.sha256(contents[WEIGHTS]).hexdigest(),
    )
    contents[CARD] = card.encode()
    if graph is not None:
        contents |= dict(zip(GRAPH, graph, strict=True))
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
    if not isinstance(hashes, dict) or set(hashes) not in ({*FILES}, {*FILES, *GRAPH}):
        raise BundleError(f"{path} does not name the files of a bundle: {', '.join(FILES)}")
    contents = {name: _read(folder, name, digest) for name, digest in hashes.items()}
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
        later=_later(folder, model_id),
    )


def _later(folder: Path, model_id: str) -> tuple[dict[str, Any], ...]:
    """The later agreements of this model, oldest first; those of another model that lay here before it do not count."""
    paths = sorted((folder / AGREEMENTS).glob("*.json"))
    entries = [_parse(path, path.read_bytes()) for path in paths]
    return tuple(entry for entry in entries if entry.get("model_id") == model_id and "engines" in entry)


def files_of(manifest: bytes) -> list[str]:
    """Names of the files a manifest claims, among those that bundles have; `load_bundle` says whether it is right."""
    claimed = json.loads(manifest).get("files", {})
    return [name for name in (*FILES, *GRAPH) if name in claimed or name in FILES]


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
