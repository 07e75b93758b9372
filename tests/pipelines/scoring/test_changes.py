"""Nights of an archive in which files come, change, fail, leave and come back, against a small oracle in Python."""

import logging
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import CATALOG, STATUS_OF_REASON, Reason, scan_id
from pipelines.decoding.version import DECODER_VERSION
from pipelines.errors import InputError
from pipelines.ingest.catalog import build_catalog
from pipelines.ingest.catalog_info import CatalogSettings
from pipelines.ingest.filters import Filters
from pipelines.scoring.plan import Plan, make_plan, read_shard, tombstones
from pipelines.scoring.preview import preview_plan
from pipelines.storage import Store, open_store
from pipelines.table.compact import compact
from pipelines.table.delta import create_table
from pipelines.table.query import ask
from tests.pipelines.table.parts import commit_part, score_row

MODEL = "1111"
NIGHTS = 3


def plan_of(out: Store, source: str, **options: Any) -> Plan:
    told = {"max_nights": NIGHTS, "shard_size": 3, "allow_removals": True, **options}
    return make_plan(out, source=source, bundle="/b", model_id=MODEL, operating_point="balanced", **told)


def planned(out: Store, plan: Plan) -> dict[str, bool]:
    """File name -> whether it supersedes an earlier row."""
    rows = [row for shard in range(plan.shards) for row in read_shard(out, plan.run_id, shard).to_pylist()]
    assert len(rows) == plan.planned
    return {row["uri"].rpartition("/")[2]: row["supersedes"] for row in rows}


def finish(out: Store, plan: Plan, outcomes: dict[str, str], decoder: str = DECODER_VERSION) -> None:
    """Write and commit what a run would: `outcomes` are reasons by file name; the others are scored."""
    table = create_table(out, conditional=True)
    if plan.removed:
        table.commit(tombstones(out, plan), plan.run_id)
    for shard in range(plan.shards):
        rows = []
        for row in read_shard(out, plan.run_id, shard).to_pylist():
            reason = outcomes.get(row["uri"].rpartition("/")[2])
            result: dict[str, Any] = {"decoder_version": decoder, "plan_version": plan.table_version}
            if reason:
                result |= {"status": STATUS_OF_REASON[Reason(reason)].value, "reason": reason, "probability": None}
            kept = {name: row[name] for name in ("scan_id", "etag", "supersedes")}
            rows.append(score_row(row["uri"], **kept, **result))
        commit_part(out, plan.run_id, shard, rows, model_id=MODEL)
    out.put(f"runs/{plan.run_id}/run.json", b'{"run_id": "%b"}' % plan.run_id.encode())


def latest(out: Store) -> dict[str, tuple[str, str]]:
    """File name -> run and status, as the view `latest` has it."""
    rows = ask(out.root, "SELECT uri, run_id, status FROM latest").to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows)
    return {row["uri"].rpartition("/")[2]: (row["run_id"], row["status"]) for row in rows}


def write_listing(catalog: Store, listed: dict[str, int]) -> None:
    """A catalogue of an archive with these files (name -> version)."""
    rows = [
        {"uri": f"s3://archive/{name}", "etag": f"{version}", "size": 1, "modified": datetime(2026, 1, 1, tzinfo=UTC)}
        for name, version in listed.items()
    ]
    full = [{**dict.fromkeys(CATALOG.names), **row, "scan_id": scan_id(row["uri"], row["etag"])} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(full, schema=CATALOG), sink)
    catalog.put("x-00000.parquet", sink.getvalue().to_pybytes())
    catalog.put("catalog.json", b'{"parts": ["x-00000.parquet"], "source": "s3://archive"}')


class Oracle:
    """What should be planned and shown: a list of (version, run, status) per file since it last came."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, str, str]]] = {}
        self.ever: set[str] = set()

    def outcome(self, name: str, version: int) -> str:
        """One of new, done, given up, again, changed."""
        rows = self.rows.get(name, [])
        if not rows:
            return "new"
        final = [row for row in rows if row[2] != "failed"]
        if final and final[-1][0] == version:
            return "done"
        failed = sum(row[0] == version and row[2] == "failed" for row in rows)
        return "given up" if failed >= NIGHTS else "again" if failed else "changed"

    def night(self, run: str, listed: dict[str, int], statuses: dict[str, str]) -> None:
        for name in set(self.rows) - set(listed):
            del self.rows[name]
        for name, status in statuses.items():
            self.rows.setdefault(name, []).append((listed[name], run, status))
            self.ever.add(name)

    def latest(self) -> dict[str, tuple[str, str]]:
        newest = {name: ([row for row in rows if row[2] != "failed"] or rows)[-1] for name, rows in self.rows.items()}
        return {name: (run, status) for name, (_, run, status) in newest.items()}


NAMES = st.sampled_from("abcde")
NIGHT = st.fixed_dictionaries(
    {
        "written": st.dictionaries(NAMES, st.integers(0, 1), max_size=3),  # file -> its version from now on
        "gone": st.sets(NAMES, max_size=2),
        "bad": st.dictionaries(NAMES, st.sampled_from(["storage_error", "blank", "truncated"]), max_size=3),
        "compacted": st.booleans(),
    }
)


@settings(max_examples=20, deadline=None)
@given(nights=st.lists(NIGHT, min_size=1, max_size=6))
def test_any_history_is_planned_and_shown_as_the_oracle_says(nights: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSCAN_CACHE", f"{folder}/cache")
        out, catalog = open_store(f"{folder}/scores"), open_store(f"{folder}/catalog")
        oracle, listed = Oracle(), {}
        for night in nights:
            listed = {name: version for name, version in listed.items() if name not in night["gone"]} | night["written"]
            listed["always"] = 0
            write_listing(catalog, listed)
            plan = plan_of(out, catalog.root)
            told = {name: oracle.outcome(name, version) for name, version in listed.items()}
            wanted = {name for name, outcome in told.items() if outcome not in {"done", "given up"}}
            assert planned(out, plan) == {name: name in oracle.ever for name in wanted}
            assert plan.given_up == sum(outcome == "given up" for outcome in told.values())
            assert plan.removed == len(set(oracle.rows) - set(listed))
            finish(out, plan, night["bad"])
            statuses = {
                name: STATUS_OF_REASON[Reason(night["bad"][name])].value if name in night["bad"] else "scored"
                for name in wanted
            }
            oracle.night(plan.run_id, listed, statuses)
            if night["compacted"]:
                compact(out.root)
            assert latest(out) == oracle.latest()


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """Where scores go, and an archive of the files a, b, c, d, e, all scored."""
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    out, source = open_store(str(tmp_path / "scores")), open_store(str(tmp_path / "source"))
    for name in "abcde":
        source.put(name, name.encode())
    finish(out, plan_of(out, source.root), {})
    return out, source


def test_a_file_that_left_has_a_tombstone_and_comes_back(stores: tuple[Store, Store]) -> None:
    out, source = stores
    source.delete("b")
    plan = plan_of(out, source.root)
    assert (plan.planned, plan.removed) == (0, 1)
    finish(out, plan, {})
    assert sorted(latest(out)) == ["a", "c", "d", "e"]
    (tomb,) = ask(out.root, "SELECT * FROM scores WHERE status = 'removed'").to_pylist()
    assert (tomb["uri"], tomb["reason"], tomb["run_id"]) == (source.uri("b"), "left_archive", plan.run_id)
    assert plan_of(out, source.root).removed == 0, "it is buried once"
    source.put("b", b"b")
    back = plan_of(out, source.root)
    assert planned(out, back) == {"b": True}
    finish(out, back, {})
    assert latest(out)["b"] == (back.run_id, "scored")


def test_an_archive_that_is_suddenly_half_empty_is_a_mistake(
    stores: tuple[Store, Store], caplog: pytest.LogCaptureFixture
) -> None:
    out, source = stores
    source.delete_all(["a", "b", "c"])
    with caplog.at_level(logging.WARNING):
        assert plan_of(out, source.root, allow_removals=False).removed == 0
    assert "3 of the 5 files known" in caplog.text
    assert "--allow-removals" in caplog.text
    assert preview_plan(out, source=source.root, model_id=MODEL, allow_removals=True).removed == 3
    source.put("a", b"a")
    assert plan_of(out, source.root, allow_removals=False).removed == 2


def test_only_files_below_the_archive_are_gone(stores: tuple[Store, Store], tmp_path: Path) -> None:
    out, _ = stores
    other = open_store(str(tmp_path / "source2"))
    other.put("x", b"x")
    assert plan_of(out, other.root).removed == 0


def test_a_catalogue_buries_only_what_was_scored_before_it_was_made(stores: tuple[Store, Store]) -> None:
    out, source = stores
    build_catalog(source.root, f"{out.root}-catalog", CatalogSettings())
    source.delete("b")
    build_catalog(source.root, f"{out.root}-later", CatalogSettings())
    assert plan_of(out, f"{out.root}-catalog").removed == 0
    assert plan_of(out, f"{out.root}-later").removed == 1
    os.utime(open_store(f"{out.root}-later").path / "catalog.json", (1e9, 1e9))
    assert plan_of(out, f"{out.root}-later").removed == 0, "b may have come after it"


def test_a_catalogue_that_names_two_versions_of_a_file_is_refused(stores: tuple[Store, Store]) -> None:
    out, source = stores
    catalog = open_store(f"{out.root}-catalog")
    build_catalog(source.root, catalog.root, CatalogSettings())
    first = dict(enumerate(info.key for chunk in catalog.list() for info in chunk if info.key.endswith(".parquet")))[0]
    data = catalog.get(first)
    source.put("c", b"changed")
    build_catalog(source.root, catalog.root, CatalogSettings())
    (second,) = [info.key for chunk in catalog.list() for info in chunk if info.key.endswith(".parquet")]
    catalog.put(first, data)
    catalog.put("catalog.json", b'{"parts": ["%b", "%b"]}' % (first.encode(), second.encode()))
    with pytest.raises(InputError, match=r"names .*/c in two versions"):
        plan_of(out, catalog.root)


def test_what_a_newer_decoder_can_read_is_tried_again_when_asked(stores: tuple[Store, Store]) -> None:
    out, source = stores
    for name in "fgh":
        source.put(name, b"new")
    finish(out, plan_of(out, source.root), {"f": "unsupported", "g": "truncated"}, decoder="0")
    assert plan_of(out, source.root).planned == 0
    asked = plan_of(out, source.root, again=("unsupported",))
    assert planned(out, asked) == {"f": True}
    finish(out, asked, {"f": "unsupported"})
    assert plan_of(out, source.root, again=("unsupported",)).planned == 0, "this decoder has tried it"


def test_what_was_given_up_is_tried_again_when_its_reason_is_named(stores: tuple[Store, Store]) -> None:
    out, source = stores
    for name in "fg":
        source.put(name, b"new")
    for _ in range(NIGHTS):
        finish(out, plan_of(out, source.root), {"f": "access_denied", "g": "storage_error"})
    assert plan_of(out, source.root).given_up == 2
    asked = plan_of(out, source.root, again=("access_denied",))
    assert (planned(out, asked), asked.given_up) == ({"f": True}, 1)


def test_a_preview_tells_the_outcomes_apart(stores: tuple[Store, Store]) -> None:
    out, source = stores
    source.put("f", b"f")
    finish(out, plan_of(out, source.root), {"f": "storage_error"})
    source.put("a", b"another")
    source.put("g", b"g")
    source.delete("b")
    seen = preview_plan(out, source=source.root, model_id=MODEL)
    assert (seen.new, seen.changed, seen.again, seen.removed) == (1, 1, 1, 1)
    assert (seen.planned, seen.done, seen.listed) == (3, 3, 6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uris.txt", "{root}/f\n\n{root}/g\n{root}/f\n{root}/absent\n"),
        ("uris.csv", "site,uri\nnorth,{root}/f\nsouth,{root}/g\nsouth,{root}/absent\n"),
    ],
)
def test_files_named_one_by_one_are_planned_without_a_listing(
    stores: tuple[Store, Store], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    out, source = stores
    for film in "fgh":
        source.put(film, b"new")
    source.delete("a")
    (tmp_path / name).write_text(text.format(root=source.root))
    with caplog.at_level(logging.WARNING):
        plan = plan_of(out, str(tmp_path / name), names_uris=True)
    assert planned(out, plan) == {"f": False, "g": False}
    assert (plan.listed, plan.removed) == (2, 0)
    assert "1 of its 3 URIs are not there" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("uris.csv", b"file\na\n", "no column uri"),
        ("uris.txt", b"\n \n", "names no URI"),
        ("uris.parquet", b"PAR1", "no Parquet file with a column uri"),
        ("uris.txt", b"\xff\xfe\x00", "neither text, CSV nor Parquet"),
        ("uris.txt", b"/nowhere/a\n/nowhere/b\n", "of its 2 URIs none is there"),
    ],
)
def test_a_file_of_uris_that_is_none_is_one_line(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=told) as caught:
        plan_of(open_store(str(tmp_path / "scores")), str(tmp_path / name), names_uris=True)
    assert "\n" not in str(caught.value)


def test_what_a_filter_leaves_out_is_not_gone(tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", open_store(str(tmp_path / "scores"))
    archive.mkdir()
    for name in ("a.dcm", "b.png", "notes.txt"):
        (archive / name).touch()
    finish(out, plan_of(out, str(archive)), {})
    (archive / "c.dcm").touch()
    chosen = Filters(include=("*.dcm",))
    preview = preview_plan(out, source=str(archive), model_id=MODEL, allow_removals=True, filters=chosen)
    assert (preview.new, preview.removed) == (1, 0)
    assert preview.ignored == {
        "excluded": {"count": 1, "example": "b.png"},
        "other_file": {"count": 1, "example": "notes.txt"},
    }
    build_catalog(str(archive), str(tmp_path / "catalog"), CatalogSettings(filters=chosen))
    plan = plan_of(out, str(tmp_path / "catalog"))
    assert (plan.planned, plan.removed) == (1, 0)
    with pytest.raises(InputError, match="give them to `rayscan catalog`"):
        plan_of(out, str(tmp_path / "catalog"), filters=chosen)


def test_films_behind_what_cannot_be_read_are_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive, out = tmp_path / "archive", open_store(str(tmp_path / "scores"))
    (archive / "locked").mkdir(parents=True)
    for name in ("a.dcm", "locked/b.dcm"):
        (archive / name).touch()
    finish(out, plan_of(out, str(archive)), {})
    scan = os.scandir

    def refused(path: str) -> Any:
        if str(path).endswith("/locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    plan = plan_of(out, str(archive))
    assert plan.removed == 0
    assert plan.ignored == {"unreadable_folder": {"count": 1, "example": "locked/"}}
    assert "could not be looked into" in caplog.text
