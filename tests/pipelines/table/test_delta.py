"""The table of scores: what is committed is there once, whoever commits, however often, on any store."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars
import pytest
from deltalake import DeltaTable

from pipelines.errors import IncompleteError, InputError, StorageError
from pipelines.storage import open_store
from pipelines.table.delta import ScoresTable, create_table, open_table
from tests.chaos.fault_proxy import Faults, faulty
from tests.pipelines.table.parts import put_part
from tests.servers import SERVERS, AzureServer, S3Server


@pytest.fixture(params=["local", *SERVERS, "refusing"])
def table(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScoresTable]:
    """An empty table on local disk, on a store that ignores conditions, two that keep them and one that refuses them.

    The second is rclone, then moto and Azurite, the last moto behind a front that answers conditional puts with 501.
    """
    with ExitStack() as opened:
        if request.param == "local":
            store = open_store(str(tmp_path / "hospital scores"))
        else:
            fixture = SERVERS.get(request.param, "s3_conditional")
            server: S3Server | AzureServer = request.getfixturevalue(fixture)
            store = open_store(f"{server.bucket()}/scores of a hospital")
            if request.param == "refusing":
                front = opened.enter_context(faulty(server, Faults(conditional=(501, "NotImplemented"))))
                monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        yield create_table(store, conditional=store.has_conditional_put())


def keys(table: ScoresTable) -> list[str]:
    return [part.key for part in table.latest().parts()]


def test_a_part_is_in_the_table_when_it_is_committed(table: ScoresTable) -> None:
    part = put_part(table.store, "run-a", 0, ["x", "y"])
    assert keys(table) == []
    table.commit([part], "run-a")
    assert table.latest().parts() == [part]
    assert table.latest().run_parts("run-a", part.model_id) == {0: part}
    assert table.latest().parts("another") == []


def test_a_repeated_commit_does_nothing(table: ScoresTable) -> None:
    parts = [put_part(table.store, "run-a", n, [f"x{n}"]) for n in range(3)]
    table.commit(parts[:2], "run-a")
    before = table.latest().version
    table.commit(parts[:2], "run-a")
    assert table.latest().version == before
    table.commit(parts, "run-a")
    assert keys(table) == [part.key for part in parts]


def test_a_table_is_made_once(table: ScoresTable) -> None:
    part = put_part(table.store, "run-a", 0, ["x"])
    table.commit([part], "run-a")
    again = create_table(table.store, conditional=table.store.has_conditional_put())
    assert again.parts() == [part]


def test_a_run_whose_parts_were_merged_takes_no_more(table: ScoresTable) -> None:
    part = put_part(table.store, "run-a", 0, ["x"])
    table.commit([part], "run-a")
    table.replace([part], [put_part(table.store, "merged", 0, ["x"])], {}, finished=["run-a"])
    with pytest.raises(IncompleteError, match="another process has finished run run-a"):
        table.commit([put_part(table.store, "run-a", 1, ["y"])], "run-a")
    table.commit([put_part(table.store, "run-b", 0, ["z"])], "run-b")
    assert len(keys(table)) == 2


def test_a_driver_that_was_overtaken_adds_nothing_twice(table: ScoresTable) -> None:
    """It opened the table before its successor committed, merged and finished the same parts."""
    if not table._conditional:
        pytest.skip("one process at a time there: the lease")
    part = put_part(table.store, "run-a", 0, ["x"])
    late = table.latest()
    table.commit([part], "run-a")
    merged = put_part(table.store, "merged", 0, ["x"])
    table.replace([part], [merged], {"operation": "compact"}, finished=["run-a"])
    with pytest.raises(IncompleteError):
        late.commit([part], "run-a")
    assert keys(table) == [merged.key]


def test_committers_at_once_lose_nothing(table: ScoresTable) -> None:
    if not table._conditional:
        pytest.skip("one process at a time there: the lease")
    parts = {run: [put_part(table.store, run, n, [f"{run}{n}"]) for n in range(5)] for run in ("run-a", "run-b")}

    def commit(run: str) -> None:
        mine = create_table(table.store, conditional=True)
        for part in parts[run]:
            mine.commit([part], run)

    with ThreadPoolExecutor(4) as threads:  # two drivers of each run
        list(threads.map(commit, ["run-a", "run-b", "run-a", "run-b"]))
    assert sorted(keys(table)) == sorted(part.key for run in parts.values() for part in run)


def test_parts_are_replaced_in_one_version(table: ScoresTable) -> None:
    parts = [put_part(table.store, "run-a", n, [f"x{n}"]) for n in range(2)]
    table.commit(parts, "run-a")
    before = table.latest()
    merged = put_part(table.store, "merged", 0, ["x0", "x1"])
    table.replace(parts, [merged], {"operation": "compact"}, finished=["run-a"])
    assert keys(table) == [merged.key]
    assert table.latest().version == before.version + 1
    assert table.at(before.version).parts() == parts
    table.replace(parts, [merged], {"operation": "compact"}, finished=["run-a"])  # a repetition
    assert keys(table) == [merged.key]
    with pytest.raises(StorageError, match="another process changed these parts"):
        table.replace(parts, [put_part(table.store, "merged", 1, ["x0", "x1"])], {}, finished=())


def test_files_that_left_the_table_or_never_came_are_unused(table: ScoresTable) -> None:
    part = put_part(table.store, "run-a", 0, ["x"])
    orphan = put_part(table.store, "run-a", 1, ["y"])
    table.commit([part], "run-a")
    merged = put_part(table.store, "merged", 0, ["x"])
    table.replace([part], [merged], {}, finished=())
    assert sorted(table.latest().unused(timedelta(0))) == sorted([part.key, orphan.key])
    assert table.latest().unused(timedelta(days=1)) == []


def test_a_version_that_never_was_is_refused(table: ScoresTable) -> None:
    with pytest.raises(InputError, match="no version 99"):
        table.at(99)


def test_the_table_as_it_was_at_a_time(table: ScoresTable) -> None:
    table.commit([put_part(table.store, "run-a", 0, ["x"])], "run-a")
    assert len(table.at(datetime.now(UTC)).parts()) == 1


def test_checkpoints_are_written_and_read(table: ScoresTable) -> None:
    for n in range(25):
        table.commit([put_part(table.store, "run-a", n, [f"x{n}"])], "run-a")
    names = [info.key for chunk in table.store.list("scores/_delta_log") for info in chunk]
    assert any(name.endswith(".checkpoint.parquet") for name in names)
    assert len(keys(table)) == 25


def test_every_engine_reads_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    table = create_table(store, conditional=True)
    table.commit([put_part(store, "run-a", 0, ["x", "y"]), put_part(store, "run-a", 1, ["z"])], "run-a")
    delta = DeltaTable(str(tmp_path / "scores"))
    assert polars.scan_delta(str(tmp_path / "scores")).collect()["uri"].to_list() == ["x", "y", "z"]
    assert sorted(delta.to_pyarrow_table()["uri"].to_pylist()) == ["x", "y", "z"]
    assert delta.to_pandas()["date"].nunique() == 1


def test_there_is_no_table_before_the_first_night(tmp_path: Path, s3_conditional: S3Server) -> None:
    assert open_table(open_store(str(tmp_path / "absent"))) is None
    assert open_table(open_store(f"{s3_conditional.bucket()}/absent")) is None
