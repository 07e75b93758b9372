"""A bundle's way to its URI and back: what arrives is what was made, or nothing."""

import json
import shutil
import stat
import threading
from pathlib import Path

import pytest

from models.bundle import FILES, MANIFEST, Bundle
from pipelines.bundles import cache_folder, evaluations, fetch_bundle, publish_bundle, record_evaluation
from pipelines.errors import BundleError
from pipelines.storage import Store, open_store
from tests.models.synthetic import small_spec
from tests.pipelines.bundles import save_untrained


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone."""
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return save_untrained(tmp_path_factory.mktemp("saved") / "mlp", small_spec("mlp"), lineage={"seed": 1})


@pytest.fixture(params=["local", "rclone", "moto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Where a bundle is published to, on each kind of store."""
    if request.param == "local":
        return open_store(str(tmp_path / "models" / "it's [a] place"))
    server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return open_store(f"{server.bucket()}/models/best")


@pytest.fixture
def remote(s3_conditional: object, bundle: Bundle) -> Store:
    """A published bundle on S3."""
    store = open_store(f"{s3_conditional.bucket()}/models/best")  # type: ignore[attr-defined]
    publish_bundle(bundle.folder, store.root)
    return store


def test_what_is_published_is_fetched(bundle: Bundle, place: Store) -> None:
    publish_bundle(bundle.folder, place.root)
    fetched = fetch_bundle(place.root)
    assert fetched.model_id == bundle.model_id
    assert (fetched.spec, fetched.calibration, fetched.lineage) == (bundle.spec, bundle.calibration, bundle.lineage)
    assert {name: (fetched.folder / name).read_bytes() for name in FILES} == {
        name: (bundle.folder / name).read_bytes() for name in FILES
    }


def test_a_half_copied_bundle_is_none(bundle: Bundle, place: Store) -> None:
    for name in FILES:
        place.put(name, (bundle.folder / name).read_bytes())
    with pytest.raises(BundleError, match=r"bundle\.json"):
        fetch_bundle(place.root)


@pytest.mark.parametrize("name", FILES)
def test_a_bundle_that_lost_a_file_is_refused_by_name(bundle: Bundle, remote: Store, cache: Path, name: str) -> None:
    remote.delete(name)
    with pytest.raises(BundleError, match=name):
        fetch_bundle(remote.root)
    assert list((cache / "bundles").iterdir()) == [], "nothing half-fetched stays"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_tampered_bundle_is_refused_by_name(remote: Store, cache: Path, name: str) -> None:
    remote.put(name, remote.get(name).replace(b"1", b"2", 1) + b" ")
    with pytest.raises(BundleError, match=name):
        fetch_bundle(remote.root)
    assert list((cache / "bundles").iterdir()) == [], "nothing that was refused stays"


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"model_id": 7}', b'{"model_id": "../../../etc"}', b"\xff"])
def test_other_files_of_that_name_are_no_bundles(place: Store, manifest: bytes) -> None:
    place.put(MANIFEST, manifest)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        fetch_bundle(place.root)


def test_a_spoilt_bundle_is_not_published(bundle: Bundle, place: Store, tmp_path: Path) -> None:
    spoilt = shutil.copytree(bundle.folder, tmp_path / "spoilt")
    (spoilt / "weights.safetensors").write_bytes(b"other weights")
    place.put("keep", b"")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        publish_bundle(spoilt, place.root)
    assert [info.key for chunk in place.list() for info in chunk] == ["keep"]


class TestCache:
    def test_a_bundle_is_fetched_once(self, bundle: Bundle, remote: Store, cache: Path) -> None:
        first = fetch_bundle(remote.root)
        assert first.folder == cache / "bundles" / bundle.model_id
        for name in FILES:
            remote.delete(name)  # whoever fetches again now, fails
        assert fetch_bundle(remote.root) == first

    def test_another_model_at_the_same_uri_is_another_bundle(
        self, bundle: Bundle, remote: Store, tmp_path: Path
    ) -> None:
        first = fetch_bundle(remote.root)
        other = save_untrained(tmp_path / "other", bundle.spec, lineage={"seed": 2})
        publish_bundle(other.folder, remote.root)
        assert fetch_bundle(remote.root).model_id == other.model_id != first.model_id

    def test_a_spoilt_copy_is_refused(self, remote: Store) -> None:
        (fetch_bundle(remote.root).folder / "calibration.json").write_text("{}")
        with pytest.raises(BundleError, match=r"calibration\.json"):
            fetch_bundle(remote.root)

    def test_many_processes_of_a_node_fetch_at_once(self, bundle: Bundle, remote: Store, cache: Path) -> None:
        found: list[str] = []
        start = threading.Barrier(6)

        def fetch() -> None:
            start.wait()
            found.append(fetch_bundle(remote.root).model_id)

        threads = [threading.Thread(target=fetch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [bundle.model_id] * 6
        assert [folder.name for folder in (cache / "bundles").iterdir()] == [bundle.model_id]

    def test_only_its_owner_reads_it(self, cache: Path) -> None:
        assert stat.S_IMODE(cache_folder("scores").stat().st_mode) == 0o700
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700

    def test_even_below_a_folder_that_all_can_read(self, cache: Path) -> None:
        cache.mkdir(mode=0o755)
        assert stat.S_IMODE(cache_folder("scores").stat().st_mode) == 0o700
        assert stat.S_IMODE(cache.stat().st_mode) == 0o755, "whose it is, is not ours to say"


class TestLedger:
    def test_every_reading_of_a_test_split_is_kept_in_order(self, bundle: Bundle, place: Store) -> None:
        publish_bundle(bundle.folder, place.root)
        assert evaluations(place.root) == []
        for number in range(5):
            record_evaluation(place.root, {"split": "test", "number": number})
        assert [entry["number"] for entry in evaluations(place.root)] == list(range(5))
        assert fetch_bundle(place.root).model_id == bundle.model_id, "the ledger is not the model"

    def test_entries_are_files_anyone_can_read(self, place: Store) -> None:
        record_evaluation(place.root, {"split": "test"})
        ((info,),) = list(place.list("ledger"))
        assert info.key.endswith(".json")
        assert json.loads(place.get(info.key)) == {"split": "test"}
