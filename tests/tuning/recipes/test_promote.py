import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import load_bundle
from models.engines.choice import load_engine
from models.engines.machine import this_machine
from models.films import Films
from models.intended_use import IntendedUse, state
from models.spec import Preprocessing
from models.statistics.metrics import auc
from pipelines.ingest.dataset import DatasetInfo
from pipelines.phantom import film
from tests.models.synthetic import SIZE, blob_films, small_spec
from tests.servers import S3Server
from tuning.recipes.promote import promote
from tuning.training.films import TrainingFilms
from tuning.training.loop import TrainSettings, fit

TRAIN, VAL = blob_films(160), blob_films(80, seed=1)
INFO = DatasetInfo(size=SIZE, preprocessing=Preprocessing(size=SIZE), fingerprint="blobs", counts={}, parts={})
FILMS = TrainingFilms(uri="", info=INFO, train=TRAIN, val=VAL)
SETTINGS = TrainSettings(epochs=4, batch_size=16, learning_rate=1e-2, augment=0.3, device="cpu", threads=1)


@pytest.mark.parametrize("model", ["cnn", "majority"])
def test_promoted_bundle_scores_as_it_was_validated(tmp_path: Path, model: str) -> None:
    out = str(tmp_path / "bundle")
    fitted = fit(small_spec(model), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, FILMS, out, lineage={"trial": 7}, intended_use=state({"age_years": [1, 5]}))

    assert load_bundle(Path(out)).model_id == bundle.model_id
    assert bundle.intended_use == IntendedUse(age_years=(1, 5), stated=("age_years",))
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
    assert "1 to 5 years (stated)" in card
    assert card.count("<img") == (0 if model == "majority" else 2 * len(bundle.evaluation["val"]["samples"]["films"]))

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


def test_the_card_of_a_model_of_phantoms_shows_where_it_looks(tmp_path: Path) -> None:
    """What it is surest of has an opacity, and the map of it lies there."""
    shown = [film(np.random.default_rng(seed), opacity=seed % 2 == 1, size=64) for seed in range(400)]
    pixels, masks = np.stack([pixels for pixels, _ in shown]), [mask for _, mask in shown]
    names = np.array([f"{seed:03d}" for seed in range(400)])
    train, val = (
        Films(
            pixels=pixels[side],
            labels=np.arange(400)[side] % 2,
            patients=names[side],
            subtypes=np.full(len(names[side]), ""),
            scan_ids=names[side],
        )
        for side in (slice(300), slice(300, 400))
    )
    spec = small_spec("cnn", 64, depth=3, width=16, pooling="max")
    fitted = fit(spec, train, val, replace(SETTINGS, epochs=6, learning_rate=5e-3, augment=0.0))
    info = replace(INFO, size=64, preprocessing=Preprocessing(size=64))
    films = TrainingFilms(uri="", info=info, train=train, val=val)
    found = promote(fitted, films, str(tmp_path / "bundle"), lineage={}).evaluation["val"]
    assert found["metrics"]["auc"]["value"] > 0.8
    surest = [sample for sample in found["samples"]["films"] if sample["kind"] == "true positive"]
    assert len(surest) == 3
    probability = 1 - fitted.val_logits[:, 0] + fitted.val_logits[:, 1]
    order = np.argsort(np.where(val.labels == 1, -probability, np.inf))[:3]
    for sample, at in zip(surest, order, strict=True):
        colours = np.asarray(Image.open(BytesIO(base64.b64decode(sample["map"].partition(",")[2])))).astype(float)
        warmth = np.asarray(Image.fromarray(colours[..., 0] - colours[..., 2]).resize((64, 64)))
        own = masks[300 + at]
        assert warmth[own].mean() > 2 * warmth[~own].mean()


def test_films_stay_out_of_the_bundle_where_nobody_wants_them_there(tmp_path: Path) -> None:
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, FILMS, str(tmp_path / "bundle"), lineage={}, show_films=False)
    assert "samples" not in bundle.evaluation["val"]
    for name in ("card.html", "evaluation.json", "bundle.json"):
        assert "data:image" not in (bundle.folder / name).read_text()


def test_a_network_that_makes_no_maps_is_promoted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("derivative of this operation is not implemented")

    monkeypatch.setattr("pipelines.pages.samples.saliency", fails)
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, FILMS, str(tmp_path / "bundle"), lineage={})
    assert "samples" not in bundle.evaluation["val"]
    assert "will show no films" in caplog.text
    assert "derivative of this operation" in caplog.text


def test_promotion_to_object_storage(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    fitted = fit(small_spec("mlp", width=8), TRAIN, VAL, SETTINGS)
    bundle = promote(fitted, FILMS, f"{s3.bucket()}/bundle", lineage={})
    assert bundle.folder.is_relative_to(tmp_path / "cache")
    weights = bundle.network().state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in fitted.state_dict.items())
