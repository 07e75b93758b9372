"""One model judged on one split: figures by hand, films that fit the model, and a ledger of who read the test films."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.engines.choice import load_engine
from models.films import Films
from models.networks.zoo import build
from models.spec import DISCLAIMER, Preprocessing
from models.statistics.calibration import Calibration
from models.statistics.evaluation import evaluation_entry
from pipelines.bundles import evaluations
from pipelines.errors import InputError
from pipelines.evaluate import BATCH, compare, evaluate
from pipelines.storage import open_store
from tests.models.synthetic import SIZE, blob_films, small_spec
from tests.pipelines.bundles import save_untrained
from tests.pipelines.datasets import write_dataset

SPLITS = {"val": blob_films(40, seed=1), "test": blob_films(2 * BATCH + 6, seed=2)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    write_dataset(store, Preprocessing(size=SIZE), SPLITS)
    return store.root


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """An untrained model whose threshold lies in the middle of its probabilities."""
    spec = small_spec()
    torch.manual_seed(3)
    network = build(spec)
    points = {"balanced": 0.5, "rule_out": 0.2}
    draft = save_untrained(
        tmp_path / "draft", spec, network=network, calibration=Calibration(temperature=1.0, operating_points=points)
    )
    median = float(np.median(probabilities(draft, SPLITS["test"])))
    calibration = Calibration(temperature=1.0, operating_points=points | {"balanced": median})
    return save_untrained(tmp_path / "bundle", spec, network=network, calibration=calibration)


def probabilities(bundle: Bundle, films: Films) -> np.ndarray:
    """One film at a time, as no one would do it."""
    engine = load_engine(bundle)
    return np.array([1.0 - engine(film[None]).probabilities[0, 0] for film in films.pixels])


@pytest.mark.parametrize("split", ["val", "test"])
def test_figures_are_those_counted_by_hand(bundle: Bundle, dataset: str, split: str) -> None:
    summary = evaluate(str(bundle.folder), dataset, split)
    films = SPLITS[split]
    found, threshold = probabilities(bundle, films), bundle.calibration.threshold
    positive = [(p, p >= threshold, kind) for p, y, kind in zip(found, films.labels, films.subtypes, strict=True) if y]
    negative = [(p, p >= threshold) for p, y in zip(found, films.labels, strict=True) if not y]
    metrics = summary.metrics
    assert (summary.split, summary.films, metrics["n"], metrics["positives"]) == (
        split,
        len(films),
        len(films),
        len(positive),
    )
    assert metrics["tp"] == sum(called for _, called, _ in positive)
    assert metrics["fn"] == sum(not called for _, called, _ in positive)
    assert metrics["fp"] == sum(called for _, called in negative)
    assert metrics["tn"] == sum(not called for _, called in negative)
    assert 0 < metrics["tp"] + metrics["fp"] < len(films), "a threshold that tells films apart"
    assert metrics["sensitivity"]["value"] == pytest.approx(metrics["tp"] / len(positive))
    assert metrics["specificity"]["value"] == pytest.approx(metrics["tn"] / len(negative))
    pairs = [(p > n) + (p == n) / 2 for p, *_ in positive for n, _ in negative]
    assert metrics["auc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    squares = [(1 - p) ** 2 for p, *_ in positive] + [n**2 for n, _ in negative]
    assert metrics["brier"] == pytest.approx(sum(squares) / len(films), abs=1e-5)
    bacteria = [called for _, called, kind in positive if kind == "bacteria"]
    assert summary.subtypes["bacteria"]["n"] == len(bacteria)
    assert summary.subtypes["bacteria"]["sensitivity"]["value"] == pytest.approx(sum(bacteria) / len(bacteria))
    assert (summary.model_id, summary.operating_point, summary.notice) == (bundle.model_id, "balanced", DISCLAIMER)


def test_only_readings_of_the_test_films_stand_in_the_ledger(bundle: Bundle, dataset: str) -> None:
    evaluate(str(bundle.folder), dataset, "val")
    assert evaluations(str(bundle.folder)) == []
    first = evaluate(str(bundle.folder), dataset, "test")
    evaluate(str(bundle.folder), dataset, "test")
    entry, again = evaluations(str(bundle.folder))
    assert (entry["split"], entry["dataset"], entry["fingerprint"]) == ("test", dataset, "9f3c")
    assert entry["metrics"] == again["metrics"] == first.metrics
    assert entry["when"] <= again["when"]


def test_a_page_is_written_when_asked_for(bundle: Bundle, dataset: str, tmp_path: Path) -> None:
    assert evaluate(str(bundle.folder), dataset, "val").report is None
    summary = evaluate(str(bundle.folder), dataset, "val", report=str(tmp_path / "page.html"))
    assert summary.report == f"file://{tmp_path}/page.html"
    assert bundle.model_id in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "prepared",
    [Preprocessing(size=SIZE, decode="exact"), Preprocessing(size=SIZE // 2), Preprocessing(size=2 * SIZE)],
    ids=["decode", "smaller", "larger"],
)
def test_films_prepared_in_another_way_are_refused(bundle: Bundle, tmp_path: Path, prepared: Preprocessing) -> None:
    store = open_store(str(tmp_path / "dataset"))
    write_dataset(store, prepared, SPLITS)
    with pytest.raises(InputError, match=f"prepare the data set again with --size {SIZE} --decode reduced"):
        evaluate(str(bundle.folder), store.root, "test")
    assert evaluations(str(bundle.folder)) == [], "nothing was read"


def test_what_the_graph_does_by_itself_needs_no_other_films(tmp_path: Path, dataset: str) -> None:
    spec = replace(
        small_spec("mlp"), preprocessing=Preprocessing(size=SIZE // 2, decoded_size=SIZE, normalise="symmetric")
    )
    save_untrained(tmp_path / "small", spec)
    assert evaluate(str(tmp_path / "small"), dataset, "val").films == len(SPLITS["val"])


def test_a_split_without_films_is_named(bundle: Bundle, dataset: str) -> None:
    with pytest.raises(InputError, match="no films in split 'train'"):
        evaluate(str(bundle.folder), dataset, "train")


def test_subgroups_and_intervals_over_patients_stand_in_the_ledger(bundle: Bundle, dataset: str) -> None:
    evaluate(str(bundle.folder), dataset, "test")
    (entry,) = evaluations(str(bundle.folder))
    films, groups = SPLITS["test"], entry["groups"]
    assert {name: group["n"] for name, group in groups["site"].items()} == {
        "north": int((np.arange(len(films)) % 3 > 0).sum()),
        "south": int((np.arange(len(films)) % 3 == 0).sum()),
    }
    assert groups["view"] == {}, "no film says its view"
    assert sum(group["n"] for group in groups["width"].values()) <= len(films)
    assert "800 to 1199 px" in groups["width"]
    for figure in ("auc", "average_precision", "mcc", "log_loss"):
        at = entry["over_patients"][figure]
        assert at["low"] < at["value"] < at["high"], figure
    rare, common = entry["predictive_values"][0], entry["predictive_values"][-1]
    assert rare["ppv"]["value"] < common["ppv"]["value"]
    assert rare["npv"]["value"] > common["npv"]["value"]


def test_models_are_compared_on_the_same_films(bundle: Bundle, dataset: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    other = save_untrained(tmp_path / "other", bundle.spec, calibration=bundle.calibration)
    page = tmp_path / "comparison.html"
    summary = compare([str(bundle.folder), str(other.folder)], dataset, "test", report=str(page))
    alone = [evaluate(str(one.folder), dataset, "test") for one in (bundle, other)]
    assert [one.metrics for one in summary.models] == [one.metrics for one in alone]
    lines = summary.in_short()["models"]
    for one, line in zip(alone, lines, strict=True):
        assert line.startswith(f"{one.model_id}  AUC {one.metrics['auc']['value']:.3f} (")
        assert line.endswith(f"specificity {one.metrics['specificity']['value']:.3f}")
    told = page.read_text()
    assert told.count("<svg") == 4, "curves, bars and two confusion matrices"
    assert DISCLAIMER in told
    assert all(one.model_id in told for one in (bundle, other))
    assert all(f"cnn {one.model_id[:6]}" in told for one in (bundle, other)), "two of one name are told apart"
    with pytest.raises(InputError, match="hold the same model"):
        compare([str(bundle.folder), str(bundle.folder)], dataset, "val")


@pytest.mark.parametrize("method", ["saerens", "bbse"])
def test_a_share_of_disease_is_estimated_only_when_asked_for(
    bundle: Bundle, dataset: str, tmp_path: Path, method: str
) -> None:
    with pytest.raises(InputError, match="does not record its results on validation films"):
        evaluate(str(bundle.folder), dataset, "val", prior_shift=method)
    val = evaluate(str(bundle.folder), dataset, "val")
    assert val.prior_shift is None
    films, rng = SPLITS["val"], np.random.default_rng(0)
    good = (0.3 + 0.4 * films.labels + rng.normal(0, 0.15, len(films))).clip(0, 1).astype(np.float32)
    points = bundle.calibration
    entry = evaluation_entry(
        split="val", labels=films.labels, probability=good, subtypes=films.subtypes, calibration=points
    )
    judged = save_untrained(
        tmp_path / "judged",
        bundle.spec,
        network=bundle.network(),
        calibration=bundle.calibration,
        evaluation={"val": entry},
    )
    page = tmp_path / "page.html"
    found = evaluate(str(judged.folder), dataset, "val", prior_shift=method, report=str(page)).prior_shift
    assert found is not None
    assert found["method"] == method
    assert found["training"] == found["true"] == val.metrics["positives"] / val.metrics["n"]
    assert 0 < found["estimated"] < 1
    assert found["brier"][0] == pytest.approx(val.metrics["brier"])
    assert f"{100 * found['estimated']:.1f} % ({method})" in page.read_text()


def test_figures_are_of_float32_and_say_which_engine_it_was(bundle: Bundle, dataset: str) -> None:
    """A GPU may be allowed bfloat16; figures that depend on the machine could not be compared."""
    folder = str(bundle.folder)
    assert evaluate(folder, dataset, "test").engine == "torch-eager-fp32-cpu"
    (entry,) = evaluations(folder)
    assert set(entry["engine"]) == {"name", "precision", "device", "version"}
    assert entry["engine"]["precision"] == "fp32"
    with pytest.raises(InputError, match="has no engine in bf16 for this machine"):
        evaluate(folder, dataset, "val", precision="bf16")
