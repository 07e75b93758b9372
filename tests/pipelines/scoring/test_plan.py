"""What is planned: the listing minus what this model has dealt with, each scan in exactly one shard."""

import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import SCORES
from pipelines.errors import InputError, NotFoundError
from pipelines.ingest.listing import list_archive
from pipelines.scoring import plan as planning
from pipelines.scoring.plan import Plan, make_plan, read_shard, unfinished_plans
from pipelines.scoring.sink import write_part
from pipelines.storage import Store, open_store

MODEL = "1234567890123456"  # reads as a number where nobody says it is text


def plan_of(out: Store, source: Store, *, model: str = MODEL, shard_size: int = 2) -> Plan:
    return make_plan(
        out, source=source.root, bundle="/b", model_id=model, operating_point="balanced", shard_size=shard_size
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
                **{name: row.get(name) for name in SCORES.names},
                "status": statuses.get(row["uri"].rpartition("/")[2], "scored"),
                "model_id": plan.model_id,
                "run_id": plan.run_id,
                "shard": number,
                "scored_at": datetime.now(UTC),
            }
            for row in rows
        ]
        assert write_part(out, plan, number, pa.Table.from_pylist(scored, schema=SCORES))


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
