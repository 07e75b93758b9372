"""SQL over scores: what each view shows, wherever the parts lie."""

import json
import logging
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import LABELS, PART, STATUS_OF_REASON, Reason
from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from pipelines.table import latest, marks, query
from pipelines.table.compact import compact, remove_unused
from pipelines.table.delta import open_table
from pipelines.table.parts import fetch_parts
from pipelines.table.query import ask, open_scores, share_latest
from tests.pipelines.table.parts import commit_part, put_part
from tests.servers import S3Server

MODEL = "12e4567890123456"  # reads as a number where nobody says it is text
START = datetime(2026, 1, 1, tzinfo=UTC)


def write_run(store: Store, name: str, rows: list[dict[str, Any]], *, hours: int, model: str = MODEL) -> None:
    """A run of one part and its record, planned from the table as it is."""
    table = open_table(store)
    files = fetch_parts(store, table.parts(model)) if table else []
    known = {uri for file in files for uri in pq.read_table(file, columns=["uri"], partitioning=None)[0].to_pylist()}
    full = [
        {
            **dict.fromkeys(PART.names),
            "scan_id": f"{row['uri']}-{row.get('etag', 'v1')}",
            "etag": "v1",
            "decoder_version": "1",
            "plan_version": table.version if table else 0,
            "supersedes": row["uri"] in known,
            "scored_at": START + timedelta(hours=hours),
            **row,
        }
        for row in rows
    ]
    day = datetime.strptime(name[:8], "%Y%m%d").date() if name[:2] == "20" else START.date()
    commit_part(store, name, 0, full, model_id=model, day=day)
    store.put(f"runs/{name}/run.json", f'{{"run_id": "{name}", "planned": {len(rows)}, "counts": {{}}}}'.encode())
    store.put(f"runs/{name}/plan.json", b"{}")


def fill(store: Store) -> Store:
    write_run(
        store,
        "night1",
        [
            {"uri": "a", "status": "scored", "probability": 0.25},
            {"uri": "b", "status": "failed", "reason": "storage_error"},
            {"uri": "c", "status": "unreadable", "reason": "truncated"},
        ],
        hours=0,
    )
    write_run(
        store,
        "night2",
        [
            {"uri": "a", "status": "failed", "reason": "vanished"},
            {"uri": "b", "status": "scored", "probability": 0.75},
        ],
        hours=24,
    )
    return store


@pytest.fixture(params=["local", "awkward", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    if request.param in {"local", "awkward"}:
        return fill(open_store(str(tmp_path / {"local": "s", "awkward": "it's [a] *new* place?"}[request.param])))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return fill(open_store(f"{server.bucket()}/scores"))


def test_latest_has_one_row_a_file_and_a_failure_never_hides_a_score(scores: Store) -> None:
    rows = ask(scores.root, "SELECT uri, status, probability, model_id FROM latest ORDER BY uri").to_pylist()
    assert rows == [
        {"uri": "a", "status": "scored", "probability": 0.25, "model_id": MODEL},
        {"uri": "b", "status": "scored", "probability": 0.75, "model_id": MODEL},
        {"uri": "c", "status": "unreadable", "probability": None, "model_id": MODEL},
    ]


def test_scores_has_every_row_and_rejects_those_without_a_score(scores: Store) -> None:
    assert ask(scores.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 5}]
    assert ask(scores.root, "SELECT uri, reason FROM rejects").to_pylist() == [{"uri": "c", "reason": "truncated"}]


def test_asked_nothing_it_sums_up(scores: Store) -> None:
    summary = ask(scores.root).to_pylist()
    assert [(row["status"], row["reason"], row["scans"]) for row in summary] == [
        ("scored", "", 2),
        ("unreadable", "truncated", 1),
    ]


def test_a_run_without_a_record_shows_as_unfinished(scores: Store) -> None:
    scores.put("runs/night3/plan.json", b'{"run_id": "night3", "planned": 7}')
    rows = ask(scores.root, "SELECT run_id, state, planned FROM runs").to_pylist()
    assert [(row["run_id"], row["state"], row["planned"]) for row in rows] == [
        ("night1", "finished", 3),
        ("night2", "finished", 2),
        ("night3", "unfinished", 7),
    ]


def test_remote_parts_are_fetched_once_and_kept_private(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    store = fill(open_store(f"{s3.bucket()}/scores"))
    ask(store.root)
    kept = sorted((tmp_path / "cache").rglob("*.parquet"))
    assert len(kept) == 2
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    written = [path.stat().st_ino for path in kept]
    write_run(store, "night3", [{"uri": "d", "status": "scored", "probability": 0.5}], hours=48)
    assert ask(store.root, "SELECT count(*) AS n FROM latest").to_pylist() == [{"n": 4}]
    assert [path.stat().st_ino for path in kept] == written


@pytest.mark.parametrize("sql", ["SELECT nothing FROM nowhere", "SELEC 1"])
def test_a_question_without_an_answer_is_the_askers_error(tmp_path: Path, sql: str) -> None:
    store = fill(open_store(str(tmp_path)))
    with pytest.raises(InputError, match="cannot be answered"):
        ask(store.root, sql)


def test_a_long_question_draws_nothing_among_the_results(scores: Store) -> None:
    shown = ask(scores.root, "SELECT current_setting('enable_progress_bar') AS bar").to_pylist()
    assert shown == [{"bar": False}], "DuckDB's goes to stdout after two seconds"


def test_a_place_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run was recorded"):
        ask(str(tmp_path))


def test_every_engine_counts_the_same(tmp_path: Path) -> None:
    """Also where a run that died left a part that was never committed, and after a compaction."""
    store = fill(open_store(str(tmp_path)))
    put_part(store, "night3", 0, ["s3://orphan.dcm"], model_id=MODEL, day=START.date())
    for _ in range(2):
        delta = DeltaTable(str(tmp_path / "scores"))
        assert ask(store.root, "SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 5}]
        assert delta.to_pandas().shape[0] == 5
        assert set(delta.to_pandas()["model_id"]) == {MODEL}
        assert pl.scan_delta(str(tmp_path / "scores")).filter(pl.col("status") == "scored").collect().height == 2
        assert delta.to_pyarrow_dataset().count_rows() == 5
        compact(store.root)


def test_the_day_of_a_row_is_that_of_its_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for day in (14, 15):
        write_run(store, f"202601{day}T020000Z-abcdef", [{"uri": f"{day}", "status": "scored"}], hours=0)
    write_run(store, "by hand", [{"uri": "c", "status": "scored"}], hours=0)
    question = "SELECT uri, date::VARCHAR AS date FROM scores ORDER BY uri"
    days = [
        {"uri": "14", "date": "2026-01-14"},
        {"uri": "15", "date": "2026-01-15"},
        {"uri": "c", "date": "2026-01-01"},
    ]
    assert ask(store.root, question).to_pylist() == days
    compact(store.root)
    assert ask(store.root, question).to_pylist() == days


def test_models_agree_or_not(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ours = [
        {"uri": "a", "status": "scored", "probability": 0.75, "prediction": "PNEUMONIA", "site": "north"},
        {"uri": "b", "status": "scored", "probability": 0.25, "prediction": "NORMAL"},
        {"uri": "c", "status": "scored", "probability": 0.25, "prediction": "NORMAL"},
    ]
    theirs = [
        {"uri": "a", "status": "scored", "probability": 0.25, "prediction": "NORMAL"},
        {"uri": "b", "status": "failed", "reason": "vanished"},
        {"uri": "c", "status": "rejected", "reason": "blank"},
    ]
    write_run(store, "n1", ours, hours=0, model="1111")
    write_run(store, "n2", theirs, hours=1, model="2222")
    write_run(
        store,
        "n3",
        [{"uri": "b", "status": "scored", "probability": 0.5, "prediction": "NORMAL"}],
        hours=2,
        model="2222",
    )
    columns = "scan_id, uri, site, model_a, model_b, probability_a, probability_b, prediction_a, prediction_b, flipped"
    rows = ask(store.root, f"SELECT {columns}, difference FROM agreement ORDER BY uri").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a-v1", "a", "north", "1111", "2222", 0.75, 0.25, "PNEUMONIA", "NORMAL", True, -0.5),
        ("b-v1", "b", None, "1111", "2222", 0.25, 0.5, "NORMAL", "NORMAL", False, 0.25),
    ]


def test_what_a_run_tells_of_itself(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    assert ask(store.root, "SELECT * FROM drift").num_rows == 0
    drift = {"site": "north", "quantity": "probability", "n": 40, "psi": 0.31, "ks": 0.2, "level": "alarm", "note": "x"}
    record = {
        "run_id": "night3", "model_id": MODEL, "date": "2026-01-03", "planned": 9, "listed": 12,
        "counts": {"scored": 9}, "scans_per_second": 3.5, "layout": "two actors",
        "engine": {"name": "openvino", "precision": "bf16"},
        "drift_level": "alarm", "drift": [drift, {**drift, "site": None, "psi": None, "level": "ok"}],
    }  # fmt: skip
    store.put("runs/night3/run.json", json.dumps(record).encode())
    told = "SELECT listed, scored, scans_per_second, engine, layout, drift_level FROM runs WHERE run_id = 'night3'"
    assert [tuple(row.values()) for row in ask(store.root, told).to_pylist()] == [
        (12, 9, 3.5, "openvino", "two actors", "alarm")
    ]
    rows = [tuple(row.values()) for row in ask(store.root, "SELECT * FROM drift ORDER BY site NULLS LAST").to_pylist()]
    assert rows == [
        ("night3", MODEL, "2026-01-03", "north", "probability", 40, 0.31, 0.2, "alarm"),
        ("night3", MODEL, "2026-01-03", None, "probability", 40, None, 0.2, "ok"),
    ]


ROWS = st.dictionaries(
    st.sampled_from("abcdef"), st.sampled_from(["scored", "failed", "rejected", "unreadable", "removed"]), max_size=6
)


def write_history(
    store: Store, nights: list[tuple[str, dict[str, str]]], clock: int, afterwards: Callable[[], None]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The runs and statuses of each model and file since its last tombstone; `afterwards` is called after each night.

    `nights`: a model, and the statuses of files. `clock`: hours from one night to the next.
    """
    expected: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for night, (model, found_now) in enumerate(nights):
        # A tombstone is of a file that the model has a row of.
        statuses = {uri: status for uri, status in found_now.items() if status != "removed" or (model, uri) in expected}
        if not statuses:
            continue
        rows: list[dict[str, Any]] = [
            {"uri": uri, "etag": f"{night}", "status": status} for uri, status in statuses.items()
        ]
        write_run(store, f"night{night}", rows, hours=clock * night, model=model)
        for uri, status in statuses.items():
            history = expected.setdefault((model, uri), [])
            history.append((f"night{night}", status))
            if status == "removed":
                history.clear()
        afterwards()
    return expected


@settings(max_examples=25, deadline=None)
@given(
    nights=st.lists(st.tuples(st.sampled_from(["1111", "2222"]), ROWS.filter(bool)), min_size=1, max_size=6),
    alike=st.sampled_from([latest.HASH, "hash(uri)", "hash(uri) % 2"]),
    asked=st.booleans(),
    shared=st.sampled_from(["never", "each night", "in the end"]),
    compacted=st.booleans(),
    clock=st.sampled_from([-24, 0, 24]),
)
def test_latest_is_what_the_history_says(
    nights: list[tuple[str, dict[str, str]]], alike: str, asked: bool, shared: str, compacted: bool, clock: int
) -> None:
    """Also if the clock runs backwards, many uris share a hash, or what large tables keep is used, shared or extended.

    What is shared is all that another machine has to begin with.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSCAN_CACHE", f"{folder}/cache")
        patch.setattr(marks, "KEPT_FROM_ROWS", 1)
        patch.setattr(latest, "HASH", alike)
        store = open_store(f"{folder}/scores")

        def afterwards() -> None:
            if asked:
                ask(store.root, "FROM latest")
            if shared == "each night":
                share_latest(store.root)

        expected = write_history(store, nights, clock, afterwards)
        if not expected:
            return
        if compacted:
            compact(store.root)
        if shared == "in the end":
            share_latest(store.root)
            patch.setattr(latest, "_look", lambda *_: pytest.fail("it is all there"))
        if shared != "never":
            patch.setenv("RAYSCAN_CACHE", f"{folder}/other machine")
        newest = {
            file: next((row for row in reversed(history) if row[1] != "failed"), history[-1])
            for file, history in expected.items()
            if history
        }
        for _ in range(2):
            found = ask(store.root, "SELECT model_id, uri, run_id, status FROM latest").to_pylist()
            assert len(found) == len(newest)
            assert {(row["model_id"], row["uri"]): (row["run_id"], row["status"]) for row in found} == newest


def test_a_question_that_is_wrong_reads_no_part(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    key = f"scores/model_id={MODEL}/date=2026-01-01/night2-00000.parquet"
    store.put(key, store.get(key)[:-20])
    with pytest.raises(InputError, match=r"cannot be answered: .*probabilty"):
        ask(store.root, "SELECT probabilty FROM latest")
    with pytest.raises(InputError, match=r"is damaged"):
        ask(store.root, "SELECT probability FROM latest")
    assert ask(store.root, "SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 2}], "needs no part either"


def test_a_mistyped_literal_is_the_askers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(open_store(str(tmp_path)))
    monkeypatch.setattr(query, "refuse_damaged", lambda *_: pytest.fail("every part is read to look for damage"))
    with pytest.raises(InputError, match=r"cannot be answered: .*2026-13-01"):
        ask(store.root, "SELECT uri FROM scores WHERE date > '2026-13-01'")


def test_the_kept_index_is_of_these_parts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(marks, "KEPT_FROM_ROWS", 1)
    store = fill(open_store(str(tmp_path / "scores")))
    for night in range(3, 10):
        ask(store.root)
        write_run(
            store, f"night{night}", [{"uri": "a", "status": "scored", "probability": night / 16}], hours=99 * night
        )
        (row,) = ask(store.root, "SELECT probability FROM latest WHERE uri = 'a'").to_pylist()
        assert row == {"probability": night / 16}
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == marks.KEPT_FILES


def test_the_first_question_of_another_machine_finds_what_the_night_left(
    scores: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "KEPT_FROM_ROWS", 1)
    share_latest(scores.root)
    remove_unused(scores, timedelta(0))
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "other machine"))
    monkeypatch.setattr(latest, "_look", lambda *_: pytest.fail("it is all there"))
    for _ in range(2):
        rows = ask(scores.root, "SELECT uri, probability FROM latest WHERE status = 'scored' ORDER BY uri").to_pylist()
        assert rows == [{"uri": "a", "probability": 0.25}, {"uri": "b", "probability": 0.75}]
    assert open_scores(scores.root).execute("SELECT count(*) FROM latest").fetchall() == [(3,)]


@pytest.mark.parametrize("damage", [b"", b"PK", b"not what it was"])
def test_what_the_night_left_may_be_damaged(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(marks, "KEPT_FROM_ROWS", 1)
    store = fill(open_store(str(tmp_path / "scores")))
    share_latest(store.root)
    (left,) = (tmp_path / "scores" / "scores" / "_latest").iterdir()
    left.write_bytes(damage)
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "other machine"))
    with caplog.at_level(logging.WARNING):
        assert ask(store.root, "SELECT count(*) AS n FROM latest").to_pylist() == [{"n": 3}]
    assert f"{left.name} is damaged and not used; delete it" in caplog.text


def test_a_question_imports_no_pandas(tmp_path: Path) -> None:
    """It would take 0.3 s, and pyarrow imports it before it makes an array of a list."""
    store = fill(open_store(str(tmp_path / "scores")))
    question = "SELECT status, count(*) FROM latest GROUP BY ALL"
    code = f"import sys; from pipelines.table.query import ask; ask({store.root!r}, {question!r})"
    code += "; print('pandas' in sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert asked.stdout == "False\n"


def test_a_spoilt_part_that_is_not_the_first_is_named(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    key = f"scores/model_id={MODEL}/date=2026-01-01/night2-00000.parquet"
    store.put(key, store.get(key)[:-20])
    with pytest.raises(InputError, match=r"^the scores cannot be read: .*night2-00000\.parquet is damaged"):
        ask(store.root)


def test_the_ten_questions_of_the_readme(tmp_path: Path) -> None:
    """Each, as it stands there, finds what was put there to be found."""
    text = (Path(__file__).parents[3] / "pipelines" / "README.md").read_text().partition("\n## Ten questions\n")[2]
    questions = re.findall(r"```sql\n(.*?)```", text.partition("\n## ")[0], flags=re.DOTALL)
    store = write_hospital(open_store(str(tmp_path)))
    answers = [ask(store.root, sql).to_pylist() for sql in questions]
    worklist, positives, rejects, failing, rates, flips, alarms, oldest, changed, patient, histogram, in_force = answers
    assert [row["uri"] for row in worklist] == ["s3://h/b.dcm", "s3://h/a.dcm"]
    assert {(str(row["date"]), row["site"]): row["percent"] for row in positives} == {
        ("2026-01-03", "north"): 50, ("2026-01-02", "north"): 33.3, ("2026-01-01", "north"): 50,
        ("2026-01-01", "south"): 0,
    }  # fmt: skip
    assert [(row["reason"], row["files"]) for row in rejects] == [("storage_error", 2), ("blank", 1)]
    assert [(row["uri"], row["runs"], row["reason"]) for row in failing] == [("s3://h/f.dcm", 2, "storage_error")]
    assert [(row["minutes"], row["scans_per_second"]) for row in rates] == [(2.0, 5.0)] * 3
    assert [(row["uri"], row["difference"]) for row in flips] == [("s3://h/c.dcm", 0.5)]
    assert [(row["site"], row["level"]) for row in alarms] == [("north", "alarm")]
    assert [row["uri"] for row in oldest] == ["s3://h/g.dcm", "s3://h/f.dcm"]
    assert [(row["uri"], row["was"], row["prediction"]) for row in changed] == [
        ("s3://h/a.dcm", "PNEUMONIA", "NORMAL"), ("s3://h/b.dcm", "NORMAL", "PNEUMONIA"),
    ]  # fmt: skip
    assert [row["uri"] for row in patient] == ["s3://h/a.dcm", "s3://h/b.dcm"]
    assert [(row["percent_from"], row["films"]) for row in histogram] == [(20, 2), (70, 1)] * 2
    assert [(row["name"], row["who"], row["why"]) for row in in_force] == [("mobilenet", "anna", "fewer alarms")]


def write_hospital(store: Store) -> Store:
    """Three nights, of two models, in which each of the ten questions has something to find."""

    def film(name: str, probability: float | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
        status = "scored" if reason is None else STATUS_OF_REASON[Reason(reason)].value
        call = None if probability is None else LABELS[probability >= 0.5]
        row = {
            "uri": f"s3://h/{name}.dcm",
            "site": "north",
            "status": status,
            "reason": reason,
            "study_date": date(2025, 5, 5),
        }
        return {**row, "probability": probability, "prediction": call, **more}

    first = [
        film("a", 0.75, patient_key="5e" * 32, study_date=date(2024, 1, 1)), film("b", 0.25, patient_key="5e" * 32),
        film("c", 0.25, site="south"), film("d", None, "blank"), film("f", None, "storage_error"),
        film("g", None, "storage_error", study_date=date(2023, 3, 3)),
    ]  # fmt: skip
    second = [film("c", 0.75), film("a", 0.25), film("b", 0.25)]
    third = [
        film("b", 0.75, etag="v2", patient_key="5e" * 32), film("a", 0.25, etag="v2", patient_key="5e" * 32,
        study_date=date(2024, 1, 1)), film("f", None, "storage_error"),
    ]  # fmt: skip
    write_run(store, "20260101T020000Z-000001", first, hours=0, model="1111")
    write_run(store, "20260102T020000Z-000002", second, hours=24, model="2222")
    write_run(store, "20260103T020000Z-000003", third, hours=48, model="1111")
    for number, (name, day) in enumerate((("cnn", 1), ("mobilenet", 2), ("another", 5)), 1):
        entry = {"number": number, "action": "promote", "role": "production", "model_id": name, "bundle": "s3://m"}
        entry |= {"name": name, "who": "anna", "why": "fewer alarms", "at": f"2026-03-0{day}T12:00:00+00:00"}
        store.put(f"models/{number:08d}.json", json.dumps(entry).encode())
    for night in (1, 2, 3):
        run = f"2026010{night}T020000Z-00000{night}"
        drift = {"site": "north", "quantity": "probability", "n": 40, "psi": 0.31, "ks": 0.2, "level": "ok"}
        record = {
            "run_id": run, "date": f"2026-01-0{night}", "planned": 600, "seconds": 120.0, "scans_per_second": 5.0,
            "engine": {"name": "openvino"}, "counts": {"scored": 600},
            "drift": [drift, {**drift, "level": "alarm"}] if night == 3 else [drift],
        }  # fmt: skip
        store.put(f"runs/{run}/run.json", json.dumps(record).encode())
    return store


@pytest.mark.parametrize("place", ["site=south", "date=backup", "date=2020-01-01", "model=x/status=y"])
def test_folders_above_the_scores_are_no_columns(tmp_path: Path, place: str) -> None:
    store = open_store(str(tmp_path / place / "scores"))
    write_run(store, "night1", [{"uri": "a", "status": "scored", "site": "north"}], hours=0)
    (row,) = ask(store.root, "SELECT site, status, model_id, date FROM scores").to_pylist()
    assert row == {"site": "north", "status": "scored", "model_id": MODEL, "date": START.date()}


def test_a_spoilt_part_is_named(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path)))
    for file in store.path.rglob("night*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"the scores cannot be read: .*night\d-00000\.parquet"):
        ask(store.root)
