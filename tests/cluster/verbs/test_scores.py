"""The verbs over scores, as they are typed."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from pipelines.ingest.patients import SECRET_VARIABLE, PatientKeys
from pipelines.storage import open_store
from tests.pipelines.bundles import save_untrained
from tests.pipelines.table.parts import commit_part, score_row
from tests.pipelines.table.test_query import MODEL, fill
from tests.servers import S3Server


def rayscan(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return fill(open_store(str(tmp_path / "scores"))).root


def test_a_question_changes_nothing_and_says_how_to_save_its_answer(scores: str, tmp_path: Path) -> None:
    part = next(tmp_path.rglob("*.parquet"))
    before = part.read_bytes()
    refused = rayscan("query", scores, f"COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "rayscan: a question is one SELECT, and this is COPY; to save an answer, use --out FILE\n"
    refused = rayscan("query", scores, "SELECT * FROM read_text('/etc/passwd')")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("rayscan: a question reads the views of the scores")
    assert refused.stderr.count("\n") == 1
    assert part.read_bytes() == before


def test_an_answer_goes_where_out_says(scores: str, tmp_path: Path) -> None:
    done = rayscan("query", scores, "FROM latest", "--out", str(tmp_path / "a.parquet"), "--memory", "500MB")
    assert done.stdout.split() == ["answer", f"file://{tmp_path}/a.parquet", "rows", "3"], done.stderr
    done = rayscan("query", scores, "FROM latest", "--out", str(tmp_path / "a.parquet"), "--json")
    assert json.loads(done.stdout) == {"answer": f"file://{tmp_path}/a.parquet", "rows": 3}
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 3
    done = rayscan("query", scores, "FROM latest", "--out", str(tmp_path / "a"), "--format", "csv")
    assert (tmp_path / "a").read_text().count("\n") == 4, done.stderr
    refused = rayscan("query", scores, "FROM latest", "--out", str(tmp_path / "b.csv"), "--format", "table")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "rayscan: a table is for a terminal; --out takes --format csv, json or parquet\n",
    )


def test_an_answer_goes_to_a_bucket(scores: str, s3: S3Server) -> None:
    out = open_store(f"{s3.bucket()}/answers")
    done = rayscan("query", scores, "SELECT uri FROM latest ORDER BY uri", "--out", out.uri("a.json"))
    assert done.exit_code == 0, done.stderr
    assert json.loads(out.get("a.json")) == [{"uri": "a"}, {"uri": "b"}, {"uri": "c"}]


def test_a_model_is_promoted_listed_and_rolled_back(scores: str, tmp_path: Path) -> None:
    first, second = (save_untrained(tmp_path / name, lineage={"of": name}) for name in ("first", "second"))
    for bundle in (first, second):
        by = ("--by", "anna", "--reason", "better", "--name", bundle.folder.name)
        done = rayscan("promote", scores, str(bundle.folder), "--as", "production", *by)
        assert done.exit_code == 0, done.stderr
    for night in ("night1", "night2"):
        open_store(scores).put(f"runs/{night}/run.json", json.dumps({"run_id": night, "model_id": MODEL}).encode())
    listed = rayscan("models", scores)
    assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
        ["production", "second", second.model_id],
        ["retired", "first", first.model_id],
        ["unnamed", "-", MODEL],
    ]
    done = rayscan("rollback", scores, "--reason", "alarms", "--by", "ben", "--json")
    entry = json.loads(done.stdout)
    assert (entry["action"], entry["name"], entry["who"], entry["why"]) == ("rollback", "first", "ben", "alarms")
    rows = json.loads(rayscan("models", scores, "--json").stdout)
    assert [(row["role"], row["name"], row["who"], row["runs"]) for row in rows] == [
        ("production", "first", "ben", 0),
        ("retired", "second", "anna", 0),
        ("unnamed", None, None, 2),
    ]
    refused = rayscan("rollback", scores)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_score_takes_the_model_in_production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, films = str(tmp_path / "scores"), tmp_path / "films"
    films.mkdir()
    (films / "a.jpg").write_bytes(b"a film")
    promoted, folder = (save_untrained(tmp_path / name, lineage={"of": name}) for name in ("promoted", "production"))
    assert rayscan("promote", out, str(promoted.folder), "--as", "production").exit_code == 0
    asked: list[str] = []
    monkeypatch.setattr("pipelines.scoring.runs.preview", lambda _, model, *__, **___: asked.append(model) or {})
    for model in ("production", "./production"):
        done = rayscan("score", str(films), "--model", model, "--out", out, "--dry-run")
        assert done.exit_code == 0, done.stderr
    assert asked == [f"file://{promoted.folder}", str(folder.folder)]


def test_patients_are_erased_by_raw_ids_or_keys(scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "long, and a secret")
    keys = PatientKeys.from_environment()
    ben = keys.key("Ben")
    films = [("anna", keys.key("Anna"), None), ("at north", keys.key("Anna", "north"), "north"), ("ben", ben, None),
             ("at st mary", keys.key("4711", "ST MARY"), "north"), ("other", None, None)]  # fmt: skip
    rows = [score_row(uri, patient_key=key, site=site) for uri, key, site in films]
    commit_part(open_store(scores), "night1", 7, rows)
    patients = tmp_path / "patients.txt"
    patients.write_text(f"Anna\n\n{ben}\n4711^^^ST MARY\n")
    for night in ("night1", "night2"):
        open_store(scores).put(f"runs/{night}/run.json", json.dumps({"run_id": night, "model_id": MODEL}).encode())
    refused = rayscan("erase", scores, "--patients", str(patients))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), "no terminal, and no --yes"
    done = rayscan("erase", scores, "--patients", str(patients), "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["films"], told["rows"]) == (4, 4)
    assert "Anna" not in done.stdout + done.stderr
    left = rayscan("query", scores, "SELECT DISTINCT uri FROM scores ORDER BY uri", "--format", "csv")
    assert left.stdout.split() == ['"uri"', '"a"', '"b"', '"c"', '"other"']
