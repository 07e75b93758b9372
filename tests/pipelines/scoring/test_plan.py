"""What is planned: the listing minus what this model has dealt with, each scan in exactly one shard."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import PART, PLAN
from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.listing import list_archive
from pipelines.scoring import plan as planning
from pipelines.scoring.batches import in_groups, read_ahead
from pipelines.scoring.plan import Plan, grown_shard, make_plan, read_shard, unfinished_plans
from pipelines.scoring.preview import PlanPreview, preview_plan
from pipelines.scoring.sink import write_part
from pipelines.storage import Store, open_store
from pipelines.table.compact import compact
from pipelines.table.delta import create_table
from pipelines.table.query import ask
from tests.benchmarks import tables
from tests.benchmarks.tables import write_catalog, write_scores

MODEL = "1234567890123456"  # reads as a number where nobody says it is text


def plan_of(out: Store, source: Store, *, model: str = MODEL, shard_size: int = 2, max_nights: int = 5) -> Plan:
    return make_plan(
        out,
        source=source.root,
        bundle="/b",
        model_id=model,
        operating_point="balanced",
        shard_size=shard_size,
        max_nights=max_nights,
    )


def planned(out: Store, plan: Plan) -> list[list[str]]:
    shards = [read_shard(out, plan.run_id, shard) for shard in range(plan.shards)]
    for number, shard in enumerate(shards):
        assert set(shard["shard"].to_pylist()) == {number}
    return [[uri.rpartition("/")[2] for uri in shard["uri"].to_pylist()] for shard in shards]


def write_rows(out: Store, plan: Plan, statuses: dict[str, str]) -> None:
    """Write the part of each shard, giving every file the named status (else `scored`)."""
    for number in range(plan.shards):
        rows = read_shard(out, plan.run_id, number).to_pylist()
        scored = [
            {
                **{name: row.get(name) for name in PART.names},
                "status": statuses.get(row["uri"].rpartition("/")[2], "scored"),
                "decoder_version": "1",
                "plan_version": plan.table_version,
                "run_id": plan.run_id,
                "shard": number,
                "scored_at": datetime.now(UTC),
            }
            for row in rows
        ]
        part = write_part(out, plan, number, pa.Table.from_pylist(scored, schema=PART))
        create_table(out, conditional=True).commit([part], plan.run_id)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    """Where scores go, and an archive of the files a, b, c, d, e."""
    source = open_store(str(tmp_path / "source"))
    for name in "abcde":
        source.put(name, name.encode())
    return open_store(str(tmp_path / "scores")), source


def test_every_scan_is_in_one_shard(stores: tuple[Store, Store]) -> None:
    out, source = stores
    plan = plan_of(out, source)
    assert (plan.listed, plan.planned, plan.shards, plan.bytes) == (5, 5, 3, 5)
    assert planned(out, plan) == [["a", "b"], ["c", "d"], ["e"]]


def test_what_is_dealt_with_is_not_planned_again_but_failures_are(stores: tuple[Store, Store]) -> None:
    out, source = stores
    write_rows(out, plan_of(out, source), {"b": "failed", "c": "unreadable", "d": "rejected"})
    assert planned(out, plan_of(out, source)) == [["b"]]


def test_a_changed_file_and_a_new_one_are_planned(stores: tuple[Store, Store]) -> None:
    out, source = stores
    write_rows(out, plan_of(out, source), {})
    source.put("c", b"another film")
    source.put("f", b"f")
    again = plan_of(out, source)
    assert planned(out, again) == [["c", "f"]]
    assert again.listed == 6


def test_another_model_starts_afresh(stores: tuple[Store, Store]) -> None:
    out, source = stores
    write_rows(out, plan_of(out, source), {})
    assert plan_of(out, source).planned == 0
    assert plan_of(out, source, model="fedcba9876543210").planned == 5


def test_unfinished_plans_are_found_for_their_model_only(stores: tuple[Store, Store]) -> None:
    out, source = stores
    assert unfinished_plans(out, MODEL) == []
    first, second = plan_of(out, source), plan_of(out, source)
    other = plan_of(out, source, model="fedcba9876543210")
    out.put(f"runs/{second.run_id}/run.json", b"{}")
    assert unfinished_plans(out, MODEL) == [first]
    assert unfinished_plans(out, other.model_id) == [other]


def test_a_plan_without_its_last_object_does_not_exist(stores: tuple[Store, Store]) -> None:
    out, source = stores
    plan = plan_of(out, source)
    out.delete(f"runs/{plan.run_id}/plan.json")
    assert unfinished_plans(out, MODEL) == []


def test_a_missing_archive_is_named(stores: tuple[Store, Store], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        plan_of(stores[0], open_store(str(tmp_path / "nowhere")))


def test_an_archive_without_scans_is_named(stores: tuple[Store, Store], tmp_path: Path) -> None:
    out, source = stores[0], open_store(str(tmp_path / "empty"))
    source.put("README.txt", b"the films have moved")
    with pytest.raises(InputError, match="empty: no scans here"):
        plan_of(out, source)
    assert unfinished_plans(out, MODEL) == []


def test_a_scan_that_a_catalogue_names_twice_is_planned_once(stores: tuple[Store, Store], tmp_path: Path) -> None:
    out, source = stores
    catalog = open_store(str(tmp_path / "catalog"))
    (table,) = list_archive(source)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([table, table.slice(1, 3), table]), sink)
    catalog.put("x-00000.parquet", sink.getvalue().to_pybytes())
    catalog.put("catalog.json", b'{"parts": ["x-00000.parquet"]}')
    plan = plan_of(out, catalog)
    assert (plan.listed, plan.planned, plan.source) == (5, 5, catalog.root)
    assert planned(out, plan) == [["a", "b"], ["c", "d"], ["e"]]


def test_shards_spread_over_several_plan_files(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARDS_PER_FILE", 2)
    out, source = stores
    plan = plan_of(out, source, shard_size=1)
    assert list(itertools.chain(*planned(out, plan))) == list("abcde")
    assert len([i for chunk in out.list(f"runs/{plan.run_id}/plan") for i in chunk]) == 3


def test_a_scan_that_fails_night_after_night_is_given_up(stores: tuple[Store, Store]) -> None:
    out, source = stores
    for night in range(3):
        plan = plan_of(out, source, max_nights=3)
        assert (plan.given_up, "b" in itertools.chain(*planned(out, plan))) == (0, True), night
        write_rows(out, plan, {"b": "failed"})
    assert [plan_of(out, source, max_nights=n).given_up for n in (3, 4)] == [1, 0]
    assert plan_of(out, source, max_nights=3).planned == 0
    source.put("b", b"mended")
    assert planned(out, plan_of(out, source, max_nights=3)) == [["b"]]


def test_a_scan_that_failed_often_and_then_did_not_is_done(stores: tuple[Store, Store]) -> None:
    out, source = stores
    for status in ("failed", "failed", "scored"):
        write_rows(out, plan_of(out, source), {"b": status})
    again = plan_of(out, source, max_nights=2)
    assert (again.planned, again.given_up) == (0, 0)


def test_plans_of_before_are_read(stores: tuple[Store, Store]) -> None:
    """A plan without `given_up`, its shards in a row group each."""
    out, source = stores
    plan = plan_of(out, source)
    old = {name: value for name, value in asdict(plan).items() if name != "given_up"}
    out.put("runs/old/plan.json", json.dumps({**old, "run_id": "old"}).encode())
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, PLAN) as writer:
        for shard in range(plan.shards):
            writer.write_table(read_shard(out, plan.run_id, shard), row_group_size=2)
    out.put("runs/old/plan/00000.parquet", sink.getvalue().to_pybytes())
    (found,) = [plan for plan in unfinished_plans(out, MODEL) if plan.run_id == "old"]
    assert found.given_up == 0
    assert planned(out, found) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("spoilt", [0, 1, 2])
@pytest.mark.parametrize("how", [lambda data: data[:-20], lambda data: b"", lambda data: b"PAR1" + data[200:]])
def test_a_spoilt_part_is_one_line(stores: tuple[Store, Store], spoilt: int, how: Callable[[bytes], bytes]) -> None:
    out, source = stores
    write_rows(out, plan_of(out, source), {})
    key = create_table(out, conditional=True).parts()[spoilt].key
    out.put(key, how(out.get(key)))
    with pytest.raises(InputError, match=rf"-0000{spoilt}\.parquet is damaged") as caught:
        plan_of(out, source)
    assert "\n" not in str(caught.value)


def test_a_plan_after_a_compaction_is_the_same(stores: tuple[Store, Store]) -> None:
    out, source = stores
    first = plan_of(out, source)
    write_rows(out, first, {"b": "failed"})
    out.put(f"runs/{first.run_id}/run.json", b"{}")
    compact(out.root)
    assert len(create_table(out, conditional=True).parts()) == 1
    assert planned(out, plan_of(out, source)) == [["b"]]


def preview(out: Store, source: Store, **changes: Any) -> PlanPreview:
    return preview_plan(out, **{"source": source.root, "model_id": MODEL, "shard_size": 2, **changes})


def test_a_preview_tells_what_a_plan_would_hold_and_writes_nothing(stores: tuple[Store, Store]) -> None:
    out, source = stores
    assert (preview(out, source).planned, out.path.exists()) == (5, False)
    for _ in range(2):
        first = plan_of(out, source)
        write_rows(out, first, {"b": "failed"})
        out.put(f"runs/{first.run_id}/run.json", b"{}")
    waiting = plan_of(out, source)
    source.put("f", b"four")
    before = {info.key for chunk in out.list() for info in chunk}
    seen = preview(out, source)
    assert (seen.listed, seen.planned, seen.done, seen.given_up, seen.shards, seen.bytes) == (6, 2, 4, 0, 1, 5)
    assert seen.unfinished == (waiting.run_id,)
    seen = preview(out, source, max_nights=2)
    assert (seen.planned, seen.done, seen.given_up, seen.bytes) == (1, 4, 1, 4)
    assert {info.key for chunk in out.list() for info in chunk} == before


def test_what_is_expected_rests_on_earlier_runs(stores: tuple[Store, Store]) -> None:
    out, source = stores
    nothing = preview(out, source, price_per_core_hour=0.05)
    assert (nothing.expected_seconds, nothing.core_hours, nothing.cost) == (None, None, None)
    assert "no finished run" in nothing.basis

    def record(name: str, rate: float, model: str = MODEL, **more: Any) -> None:
        out.put(f"runs/{name}/plan.json", b"{}")
        content = {"run_id": name, "model_id": model, "scans_per_second": rate, **more}
        out.put(f"runs/{name}/run.json", json.dumps(content).encode())

    record("night0", 50, model="another", layout="no GPU, 8 CPUs: 8 actors")
    other = preview(out, source)
    assert (other.expected_seconds, other.core_hours) == (0.1, 0.1 * 8 / 3600)
    assert "other models" in other.basis
    for night, rate in enumerate([1000, 1, 2, 3, 4, 5, 0], start=1):
        record(f"night{night}", rate, cpus=4)
    own = preview(out, source, price_per_core_hour=0.9)
    assert own.expected_seconds == pytest.approx(5 / 3)  # the last five that scored anything: 1 to 5
    assert own.core_hours == pytest.approx(5 / 3 * 4 / 3600)
    assert own.cost == pytest.approx(0.9 * 5 / 3 * 4 / 3600)
    assert own.basis == "median of the last 5 runs of this model: 3.0 scans a second on 4 cores"


@given(sizes=st.lists(st.integers(0, 30)), rows=st.integers(1, 12))
def test_rows_are_cut_into_groups_of_one_size(sizes: list[int], rows: int) -> None:
    numbers = iter(range(sum(sizes)))
    tables = [pa.table({"n": pa.array(itertools.islice(numbers, size), pa.int64())}) for size in sizes]
    groups = [table["n"].to_pylist() for table in in_groups(tables, rows)]
    assert list(itertools.chain(*groups)) == list(range(sum(sizes)))
    assert all(len(group) == rows for group in groups[:-1])
    assert all(0 < len(group) <= rows for group in groups)


def test_what_is_read_ahead_comes_in_its_order_and_with_its_errors() -> None:
    tables = [pa.table({"n": [number]}) for number in range(5)]

    def broken() -> Iterator[pa.Table]:
        yield from tables[:2]
        raise InputError("no more of it")

    assert list(read_ahead(iter(tables))) == tables
    ahead = read_ahead(broken())
    assert [next(ahead), next(ahead)] == tables[:2]
    with pytest.raises(InputError, match="no more of it"):
        next(ahead)


names = st.sets(st.text("abcdefgh", min_size=1, max_size=3), max_size=12)


@settings(max_examples=25, deadline=None)
@given(before=names.filter(bool), after=names, failing=names, shard_size=st.integers(1, 5))
def test_a_plan_is_the_listing_minus_what_is_done(
    before: set[str], after: set[str], failing: set[str], shard_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, source = open_store(f"{folder}/scores"), open_store(f"{folder}/source")
        source.path.mkdir()
        for name in before:
            source.put(name, b"x")
        write_rows(out, plan_of(out, source, shard_size=shard_size), dict.fromkeys(failing, "failed"))
        for name in after - before:
            source.put(name, b"x")
        second = planned(out, plan_of(out, source, shard_size=shard_size))
    assert list(itertools.chain(*second)) == sorted((after - before) | (before & failing))
    assert all(len(shard) == shard_size for shard in second[:-1])


def test_tables_of_the_measurements_are_as_those_of_a_night(tmp_path: Path) -> None:
    """A column that the contract gets later must not break `make bench` unseen."""
    write_scores(tmp_path / "scores", 3000, part_rows=1500)
    write_catalog(tmp_path / "catalog", 3000)
    plan = make_plan(
        open_store(str(tmp_path / "scores")),
        source=str(tmp_path / "catalog"),
        bundle="/b",
        model_id=tables.MODEL,
        operating_point="balanced",
    )
    newest = "SELECT arg_max(status, plan_version) AS status FROM scores GROUP BY uri"
    question = f"SELECT count(*) AS n FROM ({newest}) WHERE status = 'failed'"
    failed = ask(str(tmp_path / "scores"), question).to_pylist()
    assert plan.listed == 3 * 925
    assert [{"n": plan.planned}] == failed
    assert plan.oldest


@pytest.mark.parametrize(
    ("planned", "shard"),
    [
        (1, 64),
        (600, 64),  # ten shards: ten actors of a cluster share a small night
        (2_048, 64),
        (2_049, 128),
        (5_000, 256),
        (300_000, 256),
        (1_000_000, 1_024),
        (100_000_000, 8_192),
    ],
)
def test_a_shard_grows_with_the_plan(planned: int, shard: int) -> None:
    assert grown_shard(planned) == shard
    assert grown_shard(planned, 10) == 10, "no shard is larger than can be handed to a GPU"
