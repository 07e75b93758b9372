"""Members of containers: listed with URIs of their own, fetched byte for byte, and refused where they must be."""

import gzip
import io
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.contracts import Reason
from pipelines.decoding import gzip_reader, members
from pipelines.decoding.fetch import fetch
from pipelines.errors import ScanError
from pipelines.ingest.catalog import CatalogSettings, build_catalog, read_catalog
from pipelines.ingest.containers import look_up
from pipelines.ingest.filters import Filters
from pipelines.ingest.listing import Listing
from pipelines.storage import Store, open_store
from tests.pipelines.decoding.films import dicom, ramp, write
from tests.servers import S3Server

Files = dict[str, bytes]


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(files: Files, mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


PACKED: dict[str, Callable[[Files], bytes]] = {
    "a.zip": zipped,
    "stored.ZIP": lambda files: zipped(files, zipfile.ZIP_STORED),
    "a.tar": tarred,
    "gnu.tar": lambda files: tarred(files, kind=tarfile.GNU_FORMAT),
    "a.tar.gz": lambda files: tarred(files, "w:gz"),
    "a.tgz": lambda files: gzip.compress(tarred(files)[:2048]) + gzip.compress(tarred(files)[2048:]),
}


def listed(store: Store, **chosen: object) -> tuple[dict[str, str], dict[str, int]]:
    """Keys and etags, and what was ignored."""
    listing = Listing(store, filters=Filters(**chosen))  # type: ignore[arg-type]
    rows = [row for table in listing for row in table.to_pylist()]
    found = {row["uri"].removeprefix(f"{store.root}/"): row["etag"] for row in rows}
    assert len(found) == len(rows)
    return found, listing.ignored.counts


def fetched(store: Store, found: dict[str, str]) -> Files:
    return {key: fetch(store.uri(key), etag) for key, etag in found.items()}


FILES = {
    "p1.dcm": b"first" * 300,
    "deep/größe 2": random.Random(1).randbytes(70_000),
    "empty.dcm": b"",
    f"{'long' * 40}/{'name' * 30}.png": b"png",
}


@pytest.mark.parametrize("name", PACKED)
def test_members_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    store = open_store(str(write(tmp_path, {f"sub/{name}": PACKED[name](FILES), "plain.dcm": b"x"})))
    found, ignored = listed(store)
    assert fetched(store, found) == {"plain.dcm": b"x", **{f"sub/{name}!/{key}": data for key, data in FILES.items()}}
    assert ignored == {}


def test_the_same_on_s3(s3: S3Server) -> None:
    # rclone answers a range with 200, which obstore does not take for one
    _on_a_server(open_store(f"{s3.bucket()}/archive"))


def test_the_same_on_s3_with_ranges(s3_conditional: S3Server) -> None:
    _on_a_server(open_store(f"{s3_conditional.bucket()}/archive"))


def _on_a_server(store: Store) -> None:
    for name, pack in PACKED.items():
        store.put(name, pack(FILES))
    found, _ = listed(store)
    assert fetched(store, found) == {f"{name}!/{key}": data for name in PACKED for key, data in FILES.items()}
    for key, etag in found.items():
        info = look_up(store.uri(key))
        assert info
        assert info.etag == etag
    store.put("a.zip", zipped({**FILES, "new": b"x"}))
    with pytest.raises(ScanError) as caught:
        fetch(store.uri("a.zip!/p1.dcm"), found["a.zip!/p1.dcm"])
    assert caught.value.reason is Reason.CHANGED


@given(
    st.dictionaries(
        st.text("abcé /", min_size=1, max_size=12).filter(lambda name: name[-1] != "/"),
        st.binary(max_size=3000),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_members_come_out_or_are_counted(files: Files) -> None:
    for name, pack in PACKED.items():
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(str(write(Path(folder), {name: pack(files)})))
            found, ignored = listed(store)
            whole = {key.partition("!/")[2]: data for key, data in fetched(store, found).items()}
            assert whole.items() <= files.items()
            assert len(whole) + ignored.get("unsafe_member", 0) + ignored.get("repeated_member", 0) == len(files)


@given(st.binary(max_size=400), st.integers(0, 5000), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_rubbish_ends_in_a_reason(noise: bytes, at: int, chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files: Files = {}
        for name, pack in PACKED.items():
            data = bytearray(pack(FILES))
            place = at % len(data)
            data[place : place + len(noise)] = noise
            files[name] = bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.5 else data)
        store = open_store(str(write(Path(folder), files)))
        found, _ = listed(store)
        for key, etag in found.items():
            assert _outcome(store.uri(key), etag) in {"read", "corrupt", "truncated", "too_large"}


def _outcome(uri: str, etag: str) -> str:
    try:
        fetch(uri, etag)
    except ScanError as error:
        return error.reason.value
    return "read"


def test_what_is_refused_is_counted(tmp_path: Path) -> None:
    evil = ["../up.dcm", "/etc/abs.dcm", "a/../../b", "C:\\win.dcm", "..\\up.dcm", "a//b.dcm"]
    nested = {"inner.zip": zipped({"x": b"x"}), "inner.tar.gz": b"x", "film.dcm.gz": gzip.compress(b"x")}
    files = {
        **dict.fromkeys(evil, b"x"),
        **nested,
        "ctl\x01.dcm": b"x",
        ".DS_Store": b"x",
        "notes.txt": b"x",
        "good": b"g",
    }
    write(
        tmp_path,
        {
            "a.zip": _with_link(zipped(files)),
            "a.tar": _with_devices(files),
            "bad.zip": b"PK\x05\x06rubbish",
            "bad.tar": b"rubbish" * 1000,
            "bad.tgz": b"\x1f\x8brubbish",
            "folder.zip!/x.dcm": b"x",
        },
    )
    store = open_store(str(tmp_path))
    found, ignored = listed(store)
    assert fetched(store, found) == {"a.zip!/good": b"g", "a.tar!/good": b"g"}
    assert ignored == {
        "unsafe_member": 12,
        "nested_container": 6,
        "control_character": 2,
        "hidden": 2,
        "other_file": 2,
        "link_member": 4,
        "damaged_container": 3,
        "ambiguous_name": 1,
    }


def _with_link(data: bytes) -> bytes:
    sink = io.BytesIO(data)
    with zipfile.ZipFile(sink, "a") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return sink.getvalue()


def _with_devices(files: Files) -> bytes:
    sink = io.BytesIO(tarred(files))
    with tarfile.open(fileobj=sink, mode="a") as archive:
        for name, kind in (("s.dcm", tarfile.SYMTYPE), ("h.dcm", tarfile.LNKTYPE), ("d.dcm", tarfile.BLKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return sink.getvalue()


def test_bombs_are_refused_and_never_inflated_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "UNSUSPICIOUS", 1 << 20)
    monkeypatch.setattr("pipelines.ingest.containers.UNSUSPICIOUS", 1 << 20)
    black = b"\0" * (8 << 20)
    write(
        tmp_path,
        {
            "a.zip": zipped({"bomb.dcm": black, "good": b"g"}),
            "b.tgz": tarred({"bomb.dcm": black, "z": b"z"}, "w:gz"),
            "c.dcm.gz": gzip.compress(black),
        },
    )
    store = open_store(str(tmp_path))
    found, ignored = listed(store)
    assert set(found) - {"b.tgz!/bomb.dcm"} == {"a.zip!/good", "c.dcm.gz"}
    assert ignored == {"absurd_ratio": 2}
    for key in sorted(set(found) - {"a.zip!/good"}):
        with pytest.raises(ScanError) as caught:
            fetch(store.uri(key), found[key])
        assert caught.value.reason is Reason.TOO_LARGE


def test_a_header_that_lies_about_the_size_is_corrupt(tmp_path: Path) -> None:
    data = bytearray(zipped({"film.dcm": b"\0" * 500_000}))
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 1000)
    store = open_store(str(write(tmp_path, {"a.zip": bytes(data)})))
    found, _ = listed(store)
    with pytest.raises(ScanError) as caught:
        fetch(store.uri("a.zip!/film.dcm"), found["a.zip!/film.dcm"])
    assert caught.value.reason is Reason.CORRUPT


def test_encrypted_and_strangely_compressed_members_are_refused(tmp_path: Path) -> None:
    locked = bytearray(zipped({"film.dcm": b"x" * 100}))
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    write(tmp_path, {"locked.zip": bytes(locked), "lzma.zip": zipped({"film.dcm": b"x"}, zipfile.ZIP_LZMA)})
    assert listed(open_store(str(tmp_path))) == ({}, {"encrypted_member": 1, "unsupported_member": 1})


def test_the_last_of_one_name_counts(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.dcm", "old")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.dcm", "new")
    store = open_store(str(write(tmp_path, {"a.zip": sink.getvalue()})))
    found, ignored = listed(store)
    assert (fetched(store, found), ignored) == ({"a.zip!/a.dcm": b"new"}, {"repeated_member": 1})


def test_single_compressed_scans(tmp_path: Path) -> None:
    film = dicom(ramp())
    write(tmp_path, {"p1.dcm.gz": gzip.compress(film), "cut.png.gz": gzip.compress(film)[:-9], "log.gz": b"x"})
    write(tmp_path, {"rubbish.dcm.gz": b"rubbish"})
    store = open_store(str(tmp_path))
    found, ignored = listed(store)
    assert ignored == {"other_file": 1}
    assert fetch(store.uri("p1.dcm.gz"), found["p1.dcm.gz"]) == film
    reasons = {}
    for key in ("cut.png.gz", "rubbish.dcm.gz"):
        with pytest.raises(ScanError) as caught:
            fetch(store.uri(key), found[key])
        reasons[key] = caught.value.reason
    assert reasons == {"cut.png.gz": Reason.TRUNCATED, "rubbish.dcm.gz": Reason.CORRUPT}


def test_filters_reach_into_containers(tmp_path: Path) -> None:
    files = {"p1.dcm": b"x", "p2.png": b"x"}
    store = open_store(str(write(tmp_path, {"a.zip": zipped(files), "old/b.zip": zipped(files), "c.png": b"x"})))
    found, ignored = listed(store, include=("*.png",), exclude=("old/**",))
    assert (set(found), ignored) == ({"a.zip!/p2.png", "c.png"}, {"excluded": 2})


def test_inspect_reads_members(tmp_path: Path) -> None:
    film = dicom(ramp())
    archive = write(tmp_path / "archive", {"a.zip": zipped({"film": film}), "b.tgz": tarred({"film": film}, "w:gz")})
    build_catalog(str(archive), str(tmp_path / "out"), CatalogSettings(inspect=True))
    table = read_catalog(str(tmp_path / "out"))
    assert table["width"].to_pylist() == [96, 96]
    assert len(set(table["content_hash"].to_pylist())) == 1


def test_a_tar_gz_is_inflated_once_and_a_step_for_each_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, count = 1 << 20, 200
    monkeypatch.setattr(gzip_reader, "STEP", step)
    chance = random.Random(3)
    files = {f"{n:03d}.dcm": chance.randbytes(50_000) for n in range(count)}
    store = open_store(str(write(tmp_path, {"a.tgz": tarred(files, "w:gz")})))
    found, _ = listed(store)
    made = 0
    inflater = zlib.decompressobj

    class Counting:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def copy(self) -> "Counting":
            return Counting(self.inner.copy())  # type: ignore[attr-defined]

        def decompress(self, data: bytes) -> bytes:
            nonlocal made
            out: bytes = self.inner.decompress(data)  # type: ignore[attr-defined]
            made += len(out)
            return out

    monkeypatch.setattr(gzip_reader.zlib, "decompressobj", lambda wbits: Counting(inflater(wbits)))
    members._gzip.cache_clear()
    keys = sorted(found)
    chance.shuffle(keys)
    for key in keys:
        assert fetch(store.uri(key), found[key]) == files[key.partition("!/")[2]]
    assert made < 3 * count * 50_000 + count * 1.2 * step
    members._gzip.cache_clear()
