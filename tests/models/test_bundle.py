import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import FILES, MANIFEST, Bundle, _identity, load_bundle, save_bundle
from models.engines.choice import load_engine
from models.engines.machine import Machine
from models.errors import BundleError, InputError, RayscanError
from models.networks.classifier import ScanClassifier
from models.networks.familiarity import fit_familiarity
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.statistics.calibration import Calibration
from models.statistics.evaluation import evaluation_entry
from pipelines.pages.card import render_card
from tests.models.synthetic import blob_films, small_spec

CALIBRATION = Calibration(temperature=1.5, operating_points={"rule_out": 0.2, "balanced": 0.4, "rule_in": 0.6})
FILMS = blob_films(16)
EAGER_ONLY = Machine(device="cpu", native_bf16=False, openvino=None, torch="2")
LINEAGE = {
    "dataset_fingerprint": "abc",
    "counts": {"train": {"films": 16, "patients": 16, "classes": {"NORMAL": 8, "PNEUMONIA": 8}}},
    "versions": {"torch": "2"},
    "created": "2026-01-01T00:00:00+00:00",
}


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build(small_spec()).to(memory_format=torch.channels_last)


def save(folder: Path, **changes: Any) -> Bundle:
    entry = evaluation_entry(
        split="val",
        labels=FILMS.labels,
        probability=np.linspace(0, 1, 16, dtype=np.float32),
        subtypes=FILMS.subtypes,
        calibration=CALIBRATION,
    )
    contents: dict[str, Any] = {
        "spec": small_spec(),
        "state_dict": network().state_dict(),
        "calibration": CALIBRATION,
        "evaluation": {"val": entry},
        "lineage": LINEAGE,
    }
    return save_bundle(folder, render_card=render_card, **{**contents, **changes})


def test_saved_and_loaded_model_gives_the_same_probabilities_bit_for_bit(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    classifier = ScanClassifier(Preprocess(bundle.spec.preprocessing), network(), CALIBRATION).eval()
    films = torch.from_numpy(FILMS.pixels)
    with torch.inference_mode():
        expected = classifier(films).numpy()
    for again in (bundle, load_bundle(bundle.folder)):
        engine = load_engine(again, machine=EAGER_ONLY)
        assert engine.name == "torch-eager-fp32-cpu"
        found = engine(FILMS.pixels)
        assert found.probabilities.dtype == np.float32
        assert (found.probabilities == expected).all()
        assert np.isnan(found.distance).all(), "nothing was fitted"


def test_familiarity_lies_among_the_weights_and_comes_back(tmp_path: Path) -> None:
    spread = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    familiarity = fit_familiarity(spread, held_out=spread)
    bundle = save(tmp_path / "b", familiarity=familiarity)
    kept = bundle.classifier().familiarity
    assert familiarity is not None
    assert kept is not None
    assert torch.equal(kept(spread), familiarity(spread))
    assert bundle.distance_limit() == float(familiarity.limit)
    assert save(tmp_path / "unlimited").distance_limit() == float("inf")
    assert set(bundle.network().state_dict()) == set(network().state_dict())
    assert bundle.model_id != save(tmp_path / "without").model_id


def test_bundles_of_another_format_are_refused(tmp_path: Path) -> None:
    """Format 1 decoded its films at another scale: scored by this version it would be another model."""
    bundle = save(tmp_path / "b")
    path = bundle.folder / MANIFEST
    manifest = {**json.loads(path.read_text()), "format": 1}
    del manifest["model_id"]
    path.write_text(json.dumps({**manifest, "model_id": _identity(manifest)}))
    with pytest.raises(BundleError, match=r"format 1, this rayscan reads 3; install the version that made it"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("name", FILES)
def test_tampering_with_any_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    save(tmp_path / "b")
    path = tmp_path / "b" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        load_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": "0" * 16},
        {"lineage": {"dataset_fingerprint": "another"}},
        {"files": {}},
    ],
)
def test_tampering_with_the_manifest_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path / "b")
    path = tmp_path / "b" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=r"bundle\.json was changed"):
        load_bundle(tmp_path / "b")


def test_broken_manifests_say_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        load_bundle(tmp_path)
    save(tmp_path / "b")
    path = tmp_path / "b" / MANIFEST
    newer = {**json.loads(path.read_text()), "format": 99}
    for text, words in ((json.dumps(newer), "format 99"), ("[]", "not a JSON object"), ("{", "is not JSON")):
        path.write_text(text)
        with pytest.raises(BundleError, match=words):
            load_bundle(tmp_path / "b")


def test_weights_changed_after_loading_are_refused(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    shutil.copy(bundle.folder / MANIFEST, bundle.folder / "weights.safetensors")
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        bundle.network()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b", spec=small_spec("mlp"))
    with pytest.raises(BundleError, match="does not fit the mlp network"):
        bundle.network()


def test_identity_is_stable_and_follows_every_content(tmp_path: Path) -> None:
    first = save(tmp_path / "a")
    assert first.model_id == save(tmp_path / "b").model_id
    assert len(first.model_id) == 16
    weights = network().state_dict()
    weights["head.1.bias"] = weights["head.1.bias"] + 1e-7
    changed = {
        "spec": {"spec": small_spec("cnn", depth=2, width=8, dropout=0.1)},
        "state_dict": {"state_dict": weights},
        "calibration": {"calibration": Calibration(temperature=1.5000001, operating_points={"balanced": 0.4})},
        "lineage": {"lineage": {**LINEAGE, "seed": 1}},
    }
    ids = {save(tmp_path / name, **change).model_id for name, change in changed.items()}
    assert len(ids | {first.model_id}) == 5


def test_a_bundle_does_not_change(tmp_path: Path) -> None:
    save(tmp_path / "b")
    with pytest.raises(InputError, match="holds a bundle already"):
        save(tmp_path / "b")


def test_ledger_beside_the_model_is_not_the_model(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    (bundle.folder / "ledger.json").write_text("{}")
    assert load_bundle(bundle.folder).model_id == bundle.model_id


def test_the_card_is_that_of_what_the_bundle_holds(tmp_path: Path) -> None:
    bundle = save(tmp_path / "b")
    weights = bundle.hashes["weights.safetensors"]
    again = render_card(bundle.spec, bundle.calibration, bundle.evaluation, bundle.lineage, weights=weights)
    assert (bundle.folder / "card.html").read_text() == again


def test_an_evaluation_of_what_is_no_number_is_refused() -> None:
    probability = np.linspace(0, 1, 16, dtype=np.float32)
    probability[5] = np.nan
    with pytest.raises(RayscanError, match="no number as the probability of 1 of 16 films"):
        evaluation_entry(
            split="val",
            labels=FILMS.labels,
            probability=probability,
            subtypes=FILMS.subtypes,
            calibration=CALIBRATION,
        )
