"""The scores as they were: every version is listed, and can be asked as long as its parts are there."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.storage import Store, open_store
from pipelines.table.compact import compact
from pipelines.table.export import export_answer
from pipelines.table.query import ask
from pipelines.table.versions import history, parse_as_of
from tests.pipelines.table.test_query import fill
from tests.servers import S3Server


@pytest.fixture(params=["local", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Version 0 is empty, 1 holds three rows, 2 five."""
    if request.param == "local":
        return fill(open_store(str(tmp_path / "scores")))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return fill(open_store(f"{server.bucket()}/scores"))


def rows(store: Store, as_of: int | datetime | None) -> int:
    (row,) = ask(store.root, "SELECT count(*) AS n FROM scores", as_of=as_of).to_pylist()
    return int(row["n"])


def test_each_version_is_listed_and_can_be_asked(scores: Store, tmp_path: Path) -> None:
    versions = history(scores.root).to_pylist()
    assert [(v["version"], v["operation"], v["run_id"], v["rows"]) for v in versions] == [
        (2, "score", "night2", 2),
        (1, "score", "night1", 3),
        (0, "create table", None, None),
    ]
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < v["at"] <= now + timedelta(minutes=1) for v in versions)
    assert [rows(scores, version) for version in (0, 1, 2, None)] == [0, 3, 5, 5]
    assert rows(scores, now + timedelta(days=1)) == 5
    done = export_answer(scores.root, "FROM latest", str(tmp_path / "a.csv"), as_of=1)
    assert done["rows"] == 3
    with pytest.raises(InputError, match="no version 7 of the scores"):
        ask(scores.root, as_of=7)


def test_a_version_whose_parts_are_gone_says_so(scores: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(scores.root)
    assert history(scores.root).to_pylist()[0]["operation"] == "compact"
    assert rows(scores, 2) == 5, "kept for those who read it"
    compact(scores.root, keep=timedelta(0))
    monkeypatch.setenv("RAYSCAN_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(InputError, match=r"version 2 can no longer be read.*choose a later one: rayscan history"):
        rows(scores, 2)
    assert rows(scores, None) == 5


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("12", 12),
        ("2026-03-03", datetime(2026, 3, 3, 23, 59, 59, 999999, tzinfo=UTC)),
        ("2026-03-03T12:00", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("2026-03-03T12:00+02:00", datetime(2026, 3, 3, 10, tzinfo=UTC)),
    ],
)
def test_how_a_version_is_named(text: str, version: int | datetime) -> None:
    assert parse_as_of(text) == version


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "-1"])
def test_what_names_no_version(text: str) -> None:
    with pytest.raises(InputError, match="is no version: write its number, a day"):
        parse_as_of(text)
