"""Whatever a verb finds, it ends with a line a person can use; a machine gets an empty list."""

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cluster import answers, jobs
from cluster.cli import app
from pipelines.table import compact


def said(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_nothing_to_compact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.preflight.check_scores", lambda *_: None)
    monkeypatch.setattr(compact, "compact", lambda *_, **__: [])
    assert said("compact", "s3://b/scores").startswith("nothing to compact: ")
    assert said("compact", "s3://b/scores", "--json") == "[]\n"


def test_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "list_jobs", lambda _: [])
    assert said("jobs", "--address", "http://head:8265") == "no job was submitted to http://head:8265 yet\n"
    assert said("jobs", "--json") == "[]\n"


def test_an_empty_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "job_logs", lambda *_: "")
    assert said("logs", "some-job") == "some-job has written nothing yet\n"


@pytest.mark.parametrize(("form", "text"), [("table", "no rows\n"), ("csv", '"scans"\n'), ("json", "[]\n")])
def test_an_answer_without_rows(form: str, text: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    answers.print_answer(pa.table({"scans": pa.array([], pa.int64())}), form)
    assert capfdbinary.readouterr().out.decode().endswith(text)
