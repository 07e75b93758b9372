"""One contract, run over local disk, two real S3 servers and Azure's emulator."""

import pickle
import string
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.connections import RETRIES
from pipelines.errors import AccessError, InputError, NotFoundError, StorageError
from pipelines.ingest.objects import arrow_objects
from pipelines.storage import CLOCK_TRIES, ObjectInfo, Store, open_store, split_uri
from pipelines.table.lease import held_lease
from tests.chaos.fault_proxy import Faults, faulty
from tests.servers import SERVERS, AzureServer, S3Server
from tuning.recipes.recipe import Recipe
from tuning.recipes.train import train

AWKWARD_KEYS = [
    "a b.jpg",
    "ü/Löwe.png",
    "100%.jpg",
    "p%20q.dcm",
    "x#y.jpg",
    "plus+&=~.jpg",
    "e[1](2).jpg",
    "1.2.840.10008",
]


@pytest.fixture(params=["local", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "not" / "yet" / "there"))
    server: S3Server | AzureServer = request.getfixturevalue(SERVERS[request.param])
    return open_store(f"{server.bucket()}/some/prefix")


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(info.key for chunk in store.list(prefix) for info in chunk)


class TestContract:
    def test_what_is_put_is_got(self, store: Store) -> None:
        store.put("folder/a.bin", b"one")
        store.put("folder/a.bin", bytes(range(256)) * 1000)
        assert store.get("folder/a.bin") == bytes(range(256)) * 1000

    @pytest.mark.parametrize("key", AWKWARD_KEYS)
    def test_names_survive(self, store: Store, key: str) -> None:
        store.put(key, key.encode())
        assert keys(store) == [key]
        assert store.get(key) == key.encode()
        holder, inner = split_uri(store.uri(key))
        assert holder.get(inner) == key.encode()
        assert holder.uri(inner) == store.uri(key)

    def test_list_tells_size_etag_and_time(self, store: Store) -> None:
        store.put("a/1", b"12345")
        store.put("a/b/2", b"")
        store.put("ab/3", b"x")
        assert keys(store) == ["a/1", "a/b/2", "ab/3"]
        assert keys(store, "a") == ["a/1", "a/b/2"]
        assert keys(store.child("a")) == ["1", "b/2"]
        info = next(i for chunk in store.list() for i in chunk if i.key == "a/1")
        assert info.size == 5
        assert info.etag
        assert '"' not in info.etag
        assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
        head = store.head("a/1")
        assert (head.size, head.etag) == (info.size, info.etag)
        assert abs(head.modified - info.modified) < timedelta(seconds=1), "HEAD tells whole seconds"

    def test_its_clock_is_read_again_when_its_object_is_lost(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head, lost = Store.head, iter([True, True])

        def losing(store: Store, key: str) -> ObjectInfo:
            if next(lost, False):
                store.delete(key)
            return head(store, key)

        monkeypatch.setattr(Store, "head", losing)
        assert store.clock()
        lost = iter([True] * CLOCK_TRIES)
        with pytest.raises(NotFoundError):
            store.clock()
        assert not [info for chunk in store.list() for info in chunk]

    def test_its_clock_is_that_of_its_objects(self, store: Store) -> None:
        store.put("a", b"")
        assert abs((store.clock() - store.head("a").modified).total_seconds()) <= 5
        assert keys(store) == ["a"]

    def test_many_are_deleted_at_once(self, store: Store) -> None:
        for number in range(30):
            store.put(f"folder/{number}", b"")
        store.delete_all([f"folder/{number}" for number in range(25)] + ["never/there"])
        assert len(keys(store)) == 5
        store.delete_all([])

    def test_etag_changes_with_content(self, store: Store) -> None:
        store.put("k", b"one")
        before = store.head("k").etag
        store.put("k", b"two")
        assert store.head("k").etag != before

    def test_absent_objects(self, store: Store) -> None:
        store.put("there", b"")
        assert store.exists("there")
        assert not store.exists("gone")
        for access in (store.get, store.head):
            with pytest.raises(NotFoundError, match="gone"):
                access("gone")
        store.delete("gone")
        store.delete("there")
        assert keys(store) == []

    def test_many_objects_are_all_listed(self, store: Store) -> None:
        wanted = sorted(f"n/{i:04d}" for i in range(1100))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key: store.put(key, b""), wanted))
        assert keys(store) == wanted

    def test_a_range_is_read_with_the_version_it_is_of(self, store: Store) -> None:
        store.put("k", bytes(range(100)))
        etag = store.head("k").etag
        assert store.get_range("k", 10, 5) == (bytes(range(10, 15)), etag)
        assert store.get_range("k", 95, 20) == (bytes(range(95, 100)), etag), "fewer where the object ends"
        with pytest.raises(StorageError, match="k: "):
            store.get_range("k", 100, 5)
        with pytest.raises(NotFoundError, match="gone"):
            store.get_range("gone", 0, 5)

    def test_a_file_is_put_whole_whatever_its_size(self, store: Store, tmp_path: Path) -> None:
        data = bytes(range(256)) * 50_000
        (tmp_path / "large").write_bytes(data)
        store.put_file("large", tmp_path / "large")
        assert store.get("large") == data

    def test_an_arrow_listing_says_the_same_in_the_order_of_bytes(self, store: Store) -> None:
        written = sorted(f"{name}/{number}" for name in ("b", "a", "ä", "Z") for number in range(3))
        for key in reversed(written):
            store.put(key, key.encode())
        listed = [row for batch in store.list_arrow() for row in arrow_objects(batch).to_pylist()]
        if not store.is_local:
            assert [row["key"] for row in listed] == written
        assert {row["key"]: (row["size"], row["etag"]) for row in listed} == {
            key: (len(key.encode()), store.head(key).etag) for key in written
        }
        assert set(store.first_keys(after="b")) >= {key for key in written if key > "b"}
        assert store.has_objects()

    def test_a_pickled_store_opens_the_same_objects(self, store: Store) -> None:
        store.put("k", b"v")
        assert pickle.loads(pickle.dumps(store)).get("k") == b"v"


@pytest.mark.parametrize("kind", ["local", "moto", "azurite"])
def test_create_has_one_winner(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = str(tmp_path) if kind == "local" else request.getfixturevalue(SERVERS[kind]).bucket()
    store = open_store(base)
    assert store.has_conditional_put()
    won: list[int] = []
    start = threading.Barrier(8)

    def contend(contender: int) -> None:
        start.wait()
        if store.create("lease", str(contender).encode()):
            won.append(contender)

    threads = [threading.Thread(target=contend, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("lease") == str(won[0]).encode()
    assert keys(store) == ["lease"], "the probe cleans up after itself"


def test_a_store_without_conditional_put_is_found_out(s3: S3Server) -> None:
    assert not open_store(s3.bucket()).has_conditional_put()


@pytest.mark.parametrize("answer", [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "InvalidRequest")])
def test_a_store_that_refuses_conditions_is_one_without_and_is_asked_once(
    s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
) -> None:
    bucket, faults = s3_conditional.bucket(), Faults(conditional=answer)
    with faulty(s3_conditional, faults) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        store = open_store(f"{bucket}/scores")
        assert not store.has_conditional_put()
        refused = faults.injected["conditional"]
        for content in (b"first", b"second"):
            assert open_store(f"{bucket}/elsewhere").create("part", content)
            assert open_store(f"{bucket}/elsewhere").get("part") == content
        with held_lease(store, "model") as lease:
            lease.confirm()
        assert faults.injected["conditional"] == refused <= 1 + RETRIES
        assert keys(store, "leases")[-1].endswith("3.json"), "taken, renewed and given up"


def test_a_refusal_that_is_not_about_the_condition_is_told(
    s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, faults = s3_conditional.bucket(), Faults(every=(400, "InvalidArgument"))
    with faulty(s3_conditional, faults) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        with pytest.raises(StorageError, match="InvalidArgument"):
            open_store(bucket).create("part", b"")
        faults.every = None
        assert open_store(bucket).has_conditional_put()


def test_a_place_that_cannot_be_written_to_is_found_out_before_the_work(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    open_store(bucket).require_writable()
    assert keys(open_store(bucket)) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessError, match="access denied"):
        open_store(bucket).require_writable()
    with pytest.raises(AccessError, match="access denied"):  # before it asks for the data set
        train("no-data-set-here", f"{bucket}/model", Recipe(model="mlp"))


def test_a_throttled_store_is_asked_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    with faulty(s3, Faults(first=2)) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.endpoint)
        store = open_store(bucket)
        store.put("k", b"v")
    with faulty(s3, Faults(first=2)) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.endpoint)
        assert open_store(bucket).get("k") == b"v"


def test_retries_are_bounded(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    with faulty(s3, Faults(slow_down=1.0)) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.endpoint)
        with pytest.raises(StorageError, match="after 6 retries"):
            open_store(bucket).get("k")


def test_a_body_that_is_cut_off_is_fetched_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, data, faults = s3.bucket(), bytes(range(256)) * 4000, Faults(cut=0.5)
    with faulty(s3, faults) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        store = open_store(bucket)
        store.put("k", data)
        assert all(store.get("k") == data for _ in range(12))
    assert faults.injected["cut"] > 0


@pytest.mark.parametrize("server", ["s3", "s3_conditional"])
def test_a_listing_that_is_cut_off_goes_on_where_it_was(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: S3Server = request.getfixturevalue(server)
    faults, written = Faults(cut=0.6), [f"folder/{number:04d}" for number in range(1200)]
    bucket = there.bucket()
    store = open_store(bucket)  # one: each connects anew, which takes 40 ms
    for key in written:
        store.put(key, b"")
    with faulty(there, faults) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        for _ in range(5):
            assert [info.key for chunk in open_store(bucket).list() for info in chunk] == written
    assert faults.injected["cut"] > 2


def test_a_body_that_never_comes_whole_is_given_up(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    with faulty(s3, Faults(cut=1.0)) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        open_store(bucket).put("k", bytes(100_000))
        with pytest.raises(StorageError, match="after 6 retries"):
            open_store(bucket).get("k")


@pytest.mark.parametrize("use", [lambda s: list(s.list()), lambda s: s.get("k")], ids=["list", "get"])
def test_an_absent_folder_or_bucket_is_named(use: Callable[[Store], object], s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        use(open_store(str(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists(), "reading makes no folder"
    with pytest.raises(NotFoundError, match="nowhere"):
        use(open_store("s3://nowhere"))


@pytest.mark.parametrize("uri", ["ftp://host/x", "gs://bucket/x", "s3://", "s3:///key", "az://"])
def test_unusable_uris_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match=uri):
        open_store(uri)


def test_local_paths_become_canonical_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = f"file://{tmp_path}/films"
    assert {open_store(p).root for p in ("films", "./films/", f"{tmp_path}/films", wanted, wanted + "/")} == {wanted}
    assert open_store("s3://b/p/").root == "s3://b/p"


def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises((StorageError, InputError), match="taken"):
        store.put("taken/key", b"x")
    assert keys(store) == ["taken"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.lists(
        st.text(string.ascii_letters + string.digits + " -_.#%+äß~()[]", min_size=1, max_size=12)
        .filter(lambda s: s.strip(".") != "")
        .filter(lambda s: "#" not in s),
        min_size=1,
        max_size=3,
    ).map("/".join),
    data=st.binary(max_size=100),
)
def test_any_key_round_trips_on_disk(tmp_path: Path, key: str, data: bytes) -> None:
    store = open_store(str(tmp_path / f"{abs(hash(key))}"))
    store.put(key, data)
    assert keys(store) == [key]
    assert store.get(key) == data
