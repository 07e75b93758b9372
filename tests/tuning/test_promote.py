from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import load_bundle
from models.engine import load_engine
from models.metrics import auc
from pipelines.ingest.dataset import load_films, read_dataset_info
from tests.models.synthetic import small_spec
from tests.servers import S3Server
from tests.tuning.films import write_dataset
from tuning.loop import TrainSettings, fit
from tuning.promote import promote

SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=1e-2, augment=0.3, device="cpu", threads=1)


@pytest.mark.parametrize("model", ["cnn", "majority"])
def test_promoted_bundle_scores_as_it_was_validated(tmp_path: Path, model: str) -> None:
    dataset, out = str(tmp_path / "dataset"), str(tmp_path / "bundle")
    write_dataset(dataset)
    info, train, val = read_dataset_info(dataset), load_films(dataset, "train"), load_films(dataset, "val")
    fitted = fit(small_spec(model), train, val, SETTINGS)
    bundle = promote(fitted, train, val, info, out, lineage={"trial": 7})

    assert load_bundle(Path(out)).model_id == bundle.model_id
    probability = load_engine(bundle, device="cpu")(val.pixels)[:, 1]
    metrics = bundle.evaluation["val"]["metrics"]
    called = probability >= bundle.calibration.threshold
    assert metrics["tp"] == int((called & (val.labels == 1)).sum())
    assert metrics["fp"] == int((called & (val.labels == 0)).sum())
    assert metrics["auc"]["value"] == pytest.approx(auc(val.labels, probability), abs=1e-6)
    assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
    points = bundle.evaluation["val"]["operating_points"]
    assert points["rule_out"]["sensitivity"]["value"] >= 0.98
    assert points["rule_in"]["specificity"]["value"] >= 0.98
    assert bundle.evaluation["val"]["subtypes"]["virus"]["n"] == metrics["positives"]

    lineage = bundle.lineage
    assert lineage["trial"] == 7
    assert lineage["dataset_fingerprint"] == info.fingerprint
    assert lineage["training"]["learning_rate"] == 1e-2
    assert set(lineage["versions"]) == {"rayscan", "torch", "timm"}
    assert lineage["counts"]["val"] == {
        "films": len(val),
        "patients": len(np.unique(val.patients)),
        "classes": {"NORMAL": int((val.labels == 0).sum()), "PNEUMONIA": int((val.labels == 1).sum())},
    }


def test_promotion_to_object_storage(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    dataset, out = str(tmp_path / "dataset"), f"{s3.bucket()}/bundle"
    write_dataset(dataset, films=70)
    train, val = load_films(dataset, "train"), load_films(dataset, "val")
    fitted = fit(small_spec("mlp", width=8), train, val, SETTINGS)
    bundle = promote(fitted, train, val, read_dataset_info(dataset), out, lineage={})
    assert bundle.folder.is_relative_to(tmp_path / "cache")
    weights = bundle.network().state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in fitted.state_dict.items())
