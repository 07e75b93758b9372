"""What is erased is nowhere: not in the table, not in a version before, not in a plan, not in a cache."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts import IDENTITY, PLAN
from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from pipelines.table.compact import compact
from pipelines.table.delta import open_table
from pipelines.table.erase import Erasure, erase
from pipelines.table.query import ask
from pipelines.table.versions import history
from tests.pipelines.table.parts import commit_part, put_part, score_row
from tests.servers import S3Server

ANNA, BEN = "a" * 64, "b" * 64


@pytest.fixture(params=["local", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Two runs of two models. Anna has two films, one of them scored by the second model without her key."""
    if request.param == "local":
        store = open_store(str(tmp_path / "scores"))
    else:
        server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
        store = open_store(f"{server.bucket()}/scores")
    films = [("s3://h/anna&1", ANNA), ("s3://h/anna2", ANNA), ("s3://h/ben1", BEN), ("s3://h/nobody", None)]
    write_run(store, "run1", [score_row(uri, patient_key=key) for uri, key in films], "model1")
    write_run(store, "run2", [score_row(uri) for uri in ("s3://h/anna&1", "s3://h/ben1")], "model2")
    write_run(store, "run3", [score_row("s3://h/ben2", patient_key=BEN)], "model1")
    return store


def write_run(store: Store, run: str, rows: list[dict[str, Any]], model: str) -> None:
    planned = [{**{name: row.get(name) for name in PLAN.names}, "size": 1, "shard": 0} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(planned, schema=PLAN), sink)
    store.put(f"runs/{run}/plan/00000.parquet", sink.getvalue().to_pybytes())
    known = [{name: f"{name} of {row['uri']}" for name in IDENTITY.names} | {"uri": row["uri"]} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(known, schema=IDENTITY), sink)
    store.put(f"identity/model_id={model}/date=2026-01-01/{run}-00000.parquet", sink.getvalue().to_pybytes())
    store.put(f"runs/{run}/plan.json", json.dumps({"run_id": run, "model_id": model}).encode())
    store.put(f"runs/{run}/run.json", json.dumps({"run_id": run, "model_id": model}).encode())
    commit_part(store, run, 0, rows, model_id=model)


def erased(store: Store, **who: list[str]) -> Erasure:
    done = erase(store.root, agreed=lambda *_: True, **who)  # type: ignore[arg-type]
    assert done is not None
    return done


def everything(*places: Path | Store) -> bytes:
    """All bytes of files and objects, Parquet as JSON: compressed pages hide what they hold."""
    found = b""
    for place in places:
        store = place if isinstance(place, Store) else open_store(str(place))
        for key in [info.key for chunk in store.list() for info in chunk]:
            data = store.get(key)
            if key.endswith(".parquet") and "_delta_log" not in key:
                data = json.dumps(pq.read_table(pa.BufferReader(data)).to_pylist(), default=str).encode()
            found += data
    return found


def uris(store: Store) -> list[str]:
    return [row["uri"] for row in ask(store.root, "SELECT uri FROM scores ORDER BY uri, model_id").to_pylist()]


def test_a_patient_is_nowhere_afterwards(scores: Store, tmp_path: Path) -> None:
    ask(scores.root)  # fills the cache
    compact(scores.root)
    put_part(scores, "dead", 0, [score_row("s3://h/anna2", patient_key=ANNA)])  # of a run that died before its commit
    done = erased(scores, patients=[ANNA])
    assert (done.films, done.rows, done.plan_rows, done.identity_rows, done.still_named) == (2, 3, 3, 3, [])
    assert uris(scores) == ["s3://h/ben1", "s3://h/ben1", "s3://h/ben2", "s3://h/nobody"]
    left = everything(scores, tmp_path / "rayscan-cache")
    assert b"s3://h/ben1" in left
    assert b"anna" not in left
    assert ANNA.encode() not in left
    (newest, *_) = history(scores.root).to_pylist()
    assert (newest["operation"], newest["rows"]) == ("erase", 3)
    with pytest.raises(InputError, match="can no longer be read"):
        ask(scores.root, as_of=newest["version"] - 1)
    assert erased(scores, patients=[ANNA]).films == 0, "again: nothing is left to do"
    assert history(scores.root).to_pylist()[0] == newest


def test_a_film_is_erased_in_one_version_and_files_that_never_held_it_stay(scores: Store) -> None:
    before = history(scores.root).num_rows
    table = open_table(scores)
    assert table
    (untouched,) = [part for part in table.parts() if part.run_id == "run3"]
    done = erased(scores, uris=["s3://h/ben1", "s3://h/unknown"])
    assert (done.films, done.rows, done.parts, done.plan_rows, done.older_files) == (1, 2, 2, 2, 2)
    assert history(scores.root).num_rows == before + 1
    assert untouched in table.latest().parts()
    assert uris(scores) == ["s3://h/anna&1", "s3://h/anna&1", "s3://h/anna2", "s3://h/ben2", "s3://h/nobody"]


def test_a_part_of_which_nothing_is_left_goes(scores: Store) -> None:
    erased(scores, patients=[ANNA, BEN], uris=["s3://h/nobody"])
    table = open_table(scores)
    assert table is not None
    assert table.parts() == []
    assert ask(scores.root, "FROM latest").num_rows == 0


def test_reports_that_still_name_them_are_told(scores: Store) -> None:
    scores.put("runs/run1/report.html", b"<td>s3://h/anna&amp;1</td>")
    scores.put("runs/run3/report.html", b"<td>s3://h/ben2</td>")
    assert erased(scores, patients=[ANNA]).still_named == ["runs/run1/report.html"]


def test_nothing_changes_unless_agreed(scores: Store) -> None:
    asked = []
    before = everything(scores)

    def refuse(films: int, rows: int) -> bool:
        asked.append((films, rows))
        return False

    assert erase(scores.root, patients=[ANNA], agreed=refuse) is None
    assert asked == [(2, 3)]
    held = [info.key for chunk in scores.list("leases") for info in chunk]
    scores.delete_all(held)
    assert everything(scores) == before


def test_an_unfinished_run_is_finished_first(scores: Store) -> None:
    scores.put("runs/run4/plan.json", b'{"run_id": "run4", "model_id": "model1"}')
    with pytest.raises(InputError, match="run run4 is unfinished, and its plan may name what is to be erased"):
        erased(scores, patients=[ANNA])
    assert len(uris(scores)) == 7


def test_nobody_scores_meanwhile(scores: Store) -> None:
    owners: list[str] = []

    def ask_who_is_at_work(films: int, rows: int) -> bool:
        leases = sorted(info.key for chunk in scores.list("leases") for info in chunk)
        owners.extend(json.loads(scores.get(key))["owner"] for key in leases)
        return True

    assert erase(scores.root, patients=[ANNA], agreed=ask_who_is_at_work)
    assert len([owner for owner in owners if owner]) == (2 if scores.has_conditional_put() else 1)
