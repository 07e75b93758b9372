"""No question does harm: it reads the scores and nothing else, changes nothing, and takes no more than it may."""

import fcntl
import json
import os
import stat
from hashlib import sha256
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines.bundles import cache_folder
from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from pipelines.table.export import export_answer
from pipelines.table.guarded import Bounds, guarded_connection
from pipelines.table.query import ask, read_scores
from tests.pipelines.table.test_query import fill
from tests.servers import S3Server

SMALL = Bounds(memory=64_000_000)
NOT_A_QUESTION = [
    "COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT * FROM latest) TO '{folder}/stolen.csv'",
    "EXPORT DATABASE '{folder}/copy'",
    "IMPORT DATABASE '{folder}/copy'",
    "ATTACH '{folder}/new.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CALL enable_logging(storage = 'file', storage_path = '{folder}/logs')",
    "CREATE TABLE mine AS SELECT * FROM latest",
    "CREATE OR REPLACE VIEW latest AS SELECT 1",
    "DROP VIEW latest",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}'",
    "PREPARE later AS COPY (SELECT 1) TO '{part}'",
    "CHECKPOINT",
]
NOT_ITS_FILES = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('{folder}/secret.txt')",
    "SELECT * FROM read_text('{folder}/scores/../secret.txt')",
    "SELECT * FROM read_csv('{folder}/*.txt')",
    "SELECT * FROM read_blob('{folder}/**')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{folder}/secret.txt')",
    "SELECT * FROM parquet_metadata('{folder}/secret.txt')",
    "SELECT * FROM 'https://127.0.0.1:1/x.csv'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM read_duckdb('{folder}/x.db')",
    "SELECT * FROM read_json('/proc/self/environ')",
]
NO_ANSWER = [
    "FROM '/etc/passwd'",
    "SELECT getenv('HOME')",
    "SELECT * FROM sql",  # a variable of our own code
    "SELECT * FROM query('COPY (SELECT 1) TO ''{part}''')",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{folder}/logs')",
    "SELECT * FROM enable_profiling()",
    "WITH gone AS (DELETE FROM scores RETURNING *) SELECT * FROM gone",
]


@pytest.fixture(params=["local", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    (tmp_path / "secret.txt").write_text("not yours")
    if request.param == "local":
        return fill(open_store(str(tmp_path / "scores")))
    server: S3Server = request.getfixturevalue("s3_conditional")
    return fill(open_store(f"{server.bucket()}/scores"))


def contents(store: Store, folder: Path) -> dict[str, str]:
    """Everything that a question could harm: the store, and the files beside it."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_relative_to(cache_folder("spill"))]
    there = {str(file): sha256(file.read_bytes()).hexdigest() for file in files}
    return there | {info.key: info.etag for chunk in store.list() for info in chunk}


def test_no_question_harms_or_reads_anything_else(scores: Store, tmp_path: Path) -> None:
    ask(scores.root)
    part = next(str(file) for file in tmp_path.rglob("*.parquet"))  # of a remote store, its copy in the cache
    before = contents(scores, tmp_path)
    asked = {
        "a question is one SELECT|one by one": NOT_A_QUESTION,
        "no other file, URL or extension; to save an answer, use --out FILE": NOT_ITS_FILES,
        "the question cannot be answered": NO_ANSWER,
    }
    for says, attacks in asked.items():
        for attack in attacks:
            sql = attack.format(folder=tmp_path, part=part)
            with pytest.raises(InputError, match=says) as refused:
                ask(scores.root, sql)
            assert "\n" not in str(refused.value), sql
            assert "root:" not in str(refused.value), sql
    assert contents(scores, tmp_path) == before


@pytest.mark.parametrize("attack", [*NOT_ITS_FILES, *NOT_A_QUESTION[1:9]])
def test_what_the_statement_check_would_miss_the_connection_refuses(tmp_path: Path, attack: str) -> None:
    (tmp_path / "secret.txt").write_text("not yours")
    with guarded_connection([tmp_path / "part"]) as connection, pytest.raises(duckdb.Error):
        connection.execute(attack.format(folder=tmp_path, part=tmp_path / "part")).fetchall()
    assert sorted(path.name for path in tmp_path.glob("*") if path.is_file()) == ["secret.txt"]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT 1; SELECT 2", "2 statements; ask them one by one"),
        ("SELECT 1; DROP VIEW latest", "2 statements"),
        ("-- nothing", "0 statements"),
        ("PIVOT latest ON status USING count(*)", "PIVOT … ON column IN"),
        ("SELEKT 1", 'cannot be answered: Parser Error: syntax error at or near "SELEKT"$'),
        ("SELECT nothing FROM latest", 'Referenced column "nothing" not found'),
        ("SELECT error('stop') FROM latest", "cannot be answered: .*stop"),
    ],
)
def test_a_question_is_one_select(tmp_path: Path, sql: str, says: str) -> None:
    store = fill(open_store(str(tmp_path / "scores")))
    with pytest.raises(InputError, match=says):
        ask(store.root, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM latest",
        "DESCRIBE latest",
        "SUMMARIZE latest",
        "SHOW TABLES",
        "VALUES (1)",
        "WITH a AS (FROM latest) SELECT uri FROM a;",
        "PIVOT latest ON status IN ('scored', 'failed') USING count(*)",
    ],
)
def test_whatever_reads_is_a_question(tmp_path: Path, sql: str) -> None:
    assert ask(fill(open_store(str(tmp_path / "scores"))).root, sql).num_rows > 0


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT list(hash(a.range * b.range)) FROM range(100000) a, range(1000) b",  # cannot be spilled
        "SELECT count(*) FROM (SELECT DISTINCT uuid() FROM range(20000000))",  # more than fits
    ],
)
def test_a_question_that_takes_too_much_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.setattr("pipelines.table.guarded.SPILL_FACTOR", 1)
    store = fill(open_store(str(tmp_path / "scores")))
    says = r"needs more than it may take: 0\.064 GB of memory and 0\.064 GB of temporary disk; .* with --memory$"
    with pytest.raises(InputError, match=says):
        ask(store.root, sql, bounds=Bounds(memory=64_000_000))
    assert left_in_spill() == []


def test_an_answer_that_is_too_large_to_show_can_be_written(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path / "scores")))
    sql = "SELECT range AS a, 7::BIGINT AS b FROM range(5000000)"
    with pytest.raises(InputError, match=r"the answer is larger than .*--out FILE"):
        ask(store.root, sql, bounds=SMALL)
    done = export_answer(store.root, sql, str(tmp_path / "answer.parquet"), bounds=SMALL)
    assert done == {"answer": f"file://{tmp_path}/answer.parquet", "rows": 5_000_000}
    assert pq.read_metadata(tmp_path / "answer.parquet").num_rows == 5_000_000
    assert left_in_spill() == []


def left_in_spill() -> list[Path]:
    return list(cache_folder("spill").glob("question-*"))


def test_what_is_spilled_is_for_the_owner_only_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = fill(open_store(str(tmp_path / "scores")))

    def spill(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
        rows = "SELECT range AS a, hash(range) AS b, range::VARCHAR AS c FROM range(4000000) ORDER BY b"
        reader = connection.sql(rows).to_arrow_reader(1000)
        next(reader)
        (folder,) = left_in_spill()
        spilled = [file for file in folder.rglob("*") if file.suffix == ".tmp"]
        assert spilled
        return [(stat.filemode(place.stat().st_mode), place.name) for place in (folder, cache_folder("spill"))]

    modes = read_scores(store.root, spill, bounds=SMALL)
    assert {mode for mode, _ in modes} == {"drwx------"}
    assert left_in_spill() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rayscan-cache", "scores"]


def test_what_a_killed_question_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    killed, used = (cache_folder("spill") / f"question-{name}" for name in ("killed", "used"))
    for folder in (killed, used):
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "rows.tmp").write_text("patients")
    with (used / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with guarded_connection([]):
            assert not killed.exists()
            assert (used / "rows.tmp").exists()


def test_our_own_pages_get_tables_of_python_but_not_its_variables(tmp_path: Path) -> None:
    table_of_ours = pa.table({"a": [1, 2]})
    with guarded_connection([]) as connection:
        connection.register("given", table_of_ours)
        assert connection.execute("SELECT sum(a) FROM given").fetchall() == [(3,)]
        with pytest.raises(duckdb.CatalogException):
            connection.execute("SELECT * FROM table_of_ours")


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(InputError, match="needs 64 MB of memory at least"):
        Bounds(memory=1000)


def test_by_default_half_of_the_memory() -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 64_000_000 <= Bounds().memory_bytes <= machine // 2


@pytest.mark.parametrize("place", ["local", "rclone", "moto"])
@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_an_answer_as_a_file(request: pytest.FixtureRequest, tmp_path: Path, place: str, form: str) -> None:
    out = str(tmp_path / "new" / "folder")
    if place != "local":
        server: S3Server = request.getfixturevalue("s3" if place == "rclone" else "s3_conditional")
        out = f"{server.bucket()}/answers"
    store = fill(open_store(str(tmp_path / "scores")))
    sql = "SELECT uri, probability, [1, 2] AS list FROM latest ORDER BY uri"
    assert export_answer(store.root, sql, f"{out}/a.{form}")["rows"] == 3
    file = tmp_path / "fetched"
    file.write_bytes(open_store(out).get(f"a.{form}"))
    if form == "json":
        rows = json.loads(file.read_text())
    else:
        rows = (pyarrow.csv.read_csv(file) if form == "csv" else pq.read_table(file)).to_pylist()
    assert [(row["uri"], row["probability"]) for row in rows] == [("a", 0.25), ("b", 0.75), ("c", None)]
    assert str(rows[0]["list"]) == "[1, 2]"
    assert [info.key for chunk in open_store(out).list() for info in chunk] == [f"a.{form}"]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_an_answer_without_rows_is_a_whole_file(tmp_path: Path, form: str) -> None:
    store = fill(open_store(str(tmp_path / "scores")))
    out = tmp_path / f"a.{form}"
    export_answer(store.root, "SELECT uri FROM latest WHERE false", str(out))
    if form == "parquet":
        assert pq.read_table(out).schema.names == ["uri"]
    else:
        assert out.read_text() == {"csv": '"uri"\n', "json": "[]\n"}[form]


def test_an_answer_that_fails_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    store = fill(open_store(str(tmp_path / "scores")))
    out = tmp_path / "a.csv"
    out.write_text("yesterday's")
    sql = "SELECT CASE WHEN range > 400000 THEN error('late') ELSE '1' END AS a FROM range(500000)"
    with pytest.raises(InputError, match="late"):
        export_answer(store.root, sql, str(out))
    assert out.read_text() == "yesterday's"
    assert left_in_spill() == []


def test_an_answer_never_lies_within_the_scores(scores: Store, tmp_path: Path) -> None:
    before = contents(scores, tmp_path)
    key = next(info.key for chunk in scores.list("scores") for info in chunk)
    for place in (scores.uri(key), scores.uri("answer.csv"), f"{scores.root}/runs/../new.parquet"):
        with pytest.raises(InputError, match="lies within the scores; write the answer elsewhere"):
            export_answer(scores.root, None, place, "parquet")
    with pytest.raises(InputError, match=r"end it in \.csv, \.json or \.parquet, or add --format"):
        export_answer(scores.root, None, str(tmp_path / "answer.xlsx"))
    with pytest.raises(InputError, match="an answer is one file; name it"):
        export_answer(scores.root, None, str(tmp_path), "csv")
    assert contents(scores, tmp_path) == before
