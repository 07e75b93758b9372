"""One model judged on one split: figures by hand, films that fit the model, and a ledger of who read the test films."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.bundle import Bundle, save_bundle
from models.calibration import Calibration
from models.engine import load_engine
from models.films import Films
from models.spec import DISCLAIMER, Preprocessing
from models.zoo import build
from pipelines.bundles import evaluations
from pipelines.errors import InputError
from pipelines.evaluate import BATCH, evaluate
from pipelines.storage import Store, open_store
from tests.models.synthetic import SIZE, blob_films, small_spec

SPLITS = {"val": blob_films(40, seed=1), "test": blob_films(2 * BATCH + 6, seed=2)}


def write_dataset(store: Store, preprocessing: Preprocessing) -> None:
    """The films of SPLITS as `prepare` would leave them."""
    counts = {}
    for split, films in SPLITS.items():
        names = np.where(films.labels == 1, "PNEUMONIA", "NORMAL")
        columns = {
            "scan_id": films.scan_ids,
            "label": names,
            "subtype": films.subtypes,
            "patient_key": films.patients,
            "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(films.pixels),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        store.put(f"{split}.parquet", sink.getvalue().to_pybytes())
        counts[split] = {label: int((names == label).sum()) for label in ("NORMAL", "PNEUMONIA")}
    info = {
        "size": SIZE,
        "preprocessing": asdict(preprocessing),
        "fingerprint": "9f3c",
        "counts": counts,
        "parts": {split: [f"{split}.parquet"] for split in SPLITS},
    }
    store.put("dataset.json", json.dumps(info).encode())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    write_dataset(store, Preprocessing(size=SIZE))
    return store.root


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """An untrained model whose threshold lies in the middle of its probabilities."""
    spec = small_spec()
    torch.manual_seed(3)
    network = build(spec)
    points = {"balanced": 0.5, "rule_out": 0.2}
    draft = save_bundle(
        tmp_path / "draft",
        spec=spec,
        state_dict=network.state_dict(),
        calibration=Calibration(temperature=1.0, operating_points=points),
        evaluation={},
        lineage={},
    )
    median = float(np.median(probabilities(draft, SPLITS["test"])))
    return save_bundle(
        tmp_path / "bundle",
        spec=spec,
        state_dict=network.state_dict(),
        calibration=Calibration(temperature=1.0, operating_points=points | {"balanced": median}),
        evaluation={},
        lineage={},
    )


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
    write_dataset(store, prepared)
    with pytest.raises(InputError, match=f"prepare the data set again with --size {SIZE} --decode dct"):
        evaluate(str(bundle.folder), store.root, "test")
    assert evaluations(str(bundle.folder)) == [], "nothing was read"


def test_what_the_graph_does_by_itself_needs_no_other_films(tmp_path: Path, dataset: str) -> None:
    spec = replace(
        small_spec("mlp"), preprocessing=Preprocessing(size=SIZE // 2, decoded_size=SIZE, normalise="symmetric")
    )
    save_bundle(
        tmp_path / "small",
        spec=spec,
        state_dict=build(spec).state_dict(),
        calibration=Calibration(temperature=1.0, operating_points={"balanced": 0.5}),
        evaluation={},
        lineage={},
    )
    assert evaluate(str(tmp_path / "small"), dataset, "val").films == len(SPLITS["val"])


def test_a_split_without_films_is_named(bundle: Bundle, dataset: str) -> None:
    with pytest.raises(InputError, match="no films in split 'train'"):
        evaluate(str(bundle.folder), dataset, "train")
