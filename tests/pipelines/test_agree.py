"""A model made elsewhere is compared here, and scored by the engines that agree; it stays the same model."""

from pathlib import Path

import pytest
import torch

from models.bundle import Bundle, save_bundle
from models.engines.choice import load_engine
from models.engines.export import export_graph
from models.engines.machine import this_machine
from models.spec import Preprocessing
from models.statistics.calibration import Calibration
from pipelines.agree import agree
from pipelines.bundles import fetch_bundle, publish_bundle
from pipelines.errors import InputError
from pipelines.pages.card import render_card
from pipelines.storage import Store, open_store
from tests.models.engines.test_choice import classifier
from tests.models.synthetic import SIZE, blob_films, small_spec
from tests.pipelines.datasets import write_dataset

EXACT = "openvino-fp32-cpu"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = open_store(str(tmp_path_factory.mktemp("dataset")))
    write_dataset(store, Preprocessing(size=SIZE), {"val": blob_films(40, seed=1)})
    return store.root


@pytest.fixture(scope="module")
def made_elsewhere(tmp_path_factory: pytest.TempPathFactory, dataset: str) -> Bundle:
    """As a machine without any of this one's engines left it."""
    from pipelines.ingest.dataset import read_dataset_info

    whole = classifier(small_spec("mlp"))
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "b",
        render_card=render_card,
        spec=small_spec("mlp"),
        state_dict=whole.network.state_dict(),
        calibration=Calibration(
            temperature=float(whole.calibrate.temperature), operating_points={"balanced": 0.5, "rule_out": 0.3}
        ),
        evaluation={},
        lineage={"dataset_fingerprint": read_dataset_info(dataset).fingerprint},
        familiarity=whole.familiarity,
        graph=export_graph(whole),
    )


@pytest.fixture(params=["local", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "published"))
    return open_store(f"{request.getfixturevalue('s3_conditional').bucket()}/models/best")


def test_a_model_made_elsewhere_is_scored_by_what_agrees_with_it_here(
    made_elsewhere: Bundle, dataset: str, place: Store
) -> None:
    publish_bundle(made_elsewhere.folder, place.root)
    before = fetch_bundle(place.root)  # in the cache from now on
    assert load_engine(before, device="cpu").name == "torch-eager-fp32-cpu"

    summary = agree(place.root, dataset, device="cpu")

    assert (summary.model_id, summary.films, summary.device) == (made_elsewhere.model_id, 40, "cpu")
    assert set(summary.engines) == {kind.name for kind in this_machine("cpu").kinds()} - {"torch-eager-fp32-cpu"}
    assert summary.engines[EXACT].startswith("allowed: probabilities move by ")
    after = fetch_bundle(place.root)
    assert after.model_id == before.model_id
    engine = load_engine(after, device="cpu", precision="fp32")
    assert engine.name == EXACT
    (entry,) = after.later
    assert (entry["model_id"], entry["dataset"], entry["gpu"]) == (after.model_id, dataset, None)
    assert entry["engines"][EXACT]["version"] == engine.choice.version

    ((info,),) = list(place.list("agreements"))
    place.delete(info.key)
    taken_away = fetch_bundle(place.root)
    assert load_engine(taken_away, device="cpu").name == "torch-eager-fp32-cpu"


def test_what_was_found_of_another_model_at_that_place_does_not_count(
    made_elsewhere: Bundle, dataset: str, tmp_path: Path
) -> None:
    place = str(tmp_path / "published")
    publish_bundle(made_elsewhere.folder, place)
    agree(place, dataset, device="cpu")
    torch.manual_seed(9)
    other = save_bundle(
        tmp_path / "other",
        render_card=render_card,
        spec=made_elsewhere.spec,
        state_dict=classifier(made_elsewhere.spec).network.state_dict(),
        calibration=made_elsewhere.calibration,
        evaluation={},
        lineage={"seed": 9},
    )
    publish_bundle(other.folder, place)
    assert fetch_bundle(place).later == ()


def test_other_films_say_nothing_of_its_thresholds(made_elsewhere: Bundle, tmp_path: Path) -> None:
    other = open_store(str(tmp_path / "other"))
    write_dataset(other, Preprocessing(size=SIZE), {"val": blob_films(12, seed=5)})
    other.put("dataset.json", other.get("dataset.json").replace(b"9f3c", b"77aa"))
    publish_bundle(made_elsewhere.folder, str(tmp_path / "published"))
    with pytest.raises(InputError, match="was made from another data set, on whose validation films"):
        agree(str(tmp_path / "published"), other.root)


def test_a_gpu_that_is_not_here_is_refused_before_anything_is_read(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda:77' is not on this machine"):
        agree(str(tmp_path / "nothing"), dataset, device="cuda:77")
