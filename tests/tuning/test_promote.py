from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import load_bundle
from models.engine import load_engine
from models.machine import this_machine
from models.metrics import auc
from models.spec import Preprocessing
from pipelines.ingest.dataset import DatasetInfo
from tests.models.synthetic import SIZE, blob_films, small_spec
from tests.servers import S3Server
from tuning.loop import TrainSettings, fit
from tuning.promote import promote

TRAIN, VAL = blob_films(160), blob_films(80, seed=1)
INFO = DatasetInfo(size=SIZE, preprocessing=Preprocessing(size=SIZE), fingerprint="blobs", counts={}, parts={})
SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=1e-2, augment=0.3, device="cpu", threads=1)


@pytest.mark.parametrize("model", ["cnn", "majority"])
def test_promoted_bundle_scores_as_it_was_validated(tmp_path: Path, model: str) -> None:
    out = str(tmp_path / "bundle")
    fitted = fit(small_spec(model), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, TRAIN, VAL, INFO, out, lineage={"trial": 7})

    assert load_bundle(Path(out)).model_id == bundle.model_id
    engine = load_engine(bundle, device="cpu", precision="fp32")
    probability, distance = engine(VAL.pixels)
    probability = probability[:, 1]
    metrics = bundle.evaluation["val"]["metrics"]
    called = probability >= bundle.calibration.threshold
    assert metrics["tp"] == int((called & (VAL.labels == 1)).sum())
    assert metrics["fp"] == int((called & (VAL.labels == 0)).sum())
    assert metrics["auc"]["value"] == pytest.approx(auc(VAL.labels, probability), abs=1e-6)
    assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
    points = bundle.evaluation["val"]["operating_points"]
    assert points["rule_out"]["sensitivity"]["value"] >= 0.98
    assert points["rule_in"]["specificity"]["value"] >= 0.98
    assert bundle.evaluation["val"]["subtypes"]["virus"]["n"] == metrics["positives"] / 2

    measured = bundle.evaluation["val"]["engines"]
    machine = this_machine("cpu")
    assert set(measured) == {kind.name for kind in machine.kinds()} - {"torch-eager-fp32-cpu"}
    assert measured["openvino-fp32-cpu"]["allowed"]
    assert measured["openvino-fp32-cpu"]["max_dp"] <= 1e-4
    assert measured["openvino-fp32-cpu"]["films"] == len(VAL)
    drift = bundle.evaluation["val"]["fingerprint"]
    assert drift["films"] == len(VAL)
    assert drift["probability"]["percentiles"][50] == pytest.approx(np.median(probability), abs=1e-3)
    if model == "majority":
        assert drift["ood_score"] is None
        assert np.isnan(distance).all()
    else:
        assert drift["ood_score"]["percentiles"][50] == pytest.approx(np.median(distance), rel=1e-3)
        assert 0.3 < np.median(distance) < 3, "films like the training films lie about 1 away"
    card = (bundle.folder / "card.html").read_text()
    assert "openvino-fp32-cpu" in card

    lineage = bundle.lineage
    assert lineage["trial"] == 7
    assert lineage["dataset_fingerprint"] == "blobs"
    assert lineage["training"]["learning_rate"] == 1e-2
    assert set(lineage["versions"]) == {"rayscan", "torch", "timm"}
    assert lineage["counts"]["val"] == {
        "films": len(VAL),
        "patients": len(np.unique(VAL.patients)),
        "classes": {"NORMAL": int((VAL.labels == 0).sum()), "PNEUMONIA": int((VAL.labels == 1).sum())},
    }


def test_promotion_to_object_storage(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, TRAIN, VAL, INFO, f"{s3.bucket()}/bundle", lineage={})
    assert bundle.folder.is_relative_to(tmp_path / "cache")
    weights = bundle.network().state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in fitted.state_dict.items())
