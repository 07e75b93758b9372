"""What people are told when a night is over, and that telling them changes nothing and gives nothing away."""

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.notify import NightEnd, channels, message, notified
from pipelines.errors import IncompleteError, InputError, StorageError
from pipelines.scoring.ending import RunEnd
from pipelines.storage import open_store
from tests.pipelines.bundles import save_untrained

# Of Python 3.11 and 3.12, whose imghdr apprise looks for.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

FINISHED = RunEnd(
    run_id="20261128T021500Z-abc123",
    model_id="m1",
    state="finished",
    exit_code=0,
    error=None,
    told=None,
    at="2026-11-28T02:40:17+00:00",
    node="node1",
    pid=7,
    free_bytes=None,
    peak_bytes=None,
    planned=6000,
    shards=24,
    done=24,
    last_shard=23,
    under_way=[],
    deaths={},
    counts={"scored": 5900, "rejected": 100, "failed": 0},
)
DIED = replace(
    FINISHED, state="store_failed", counts=None, done=7, error="StorageError", told="s3://h/DOE_JANE.dcm: no"
)
ALARM = "alarm: unfamiliar_share of north, these are not the patients the model was made for"


def told(exit_code: int, *runs: RunEnd) -> tuple[str, str]:
    return message(NightEnd(scores="s3://h/scores", runs=list(runs), exit_code=exit_code))


def test_a_night_that_is_done() -> None:
    title, text = told(0, FINISHED)
    assert title == "rayscan: night done"
    assert text.splitlines() == [
        "Run 20261128T021500Z-abc123: 6,000 scans planned: 5,900 scored, 100 rejected.",
        "Nothing to do.",
        "More: rayscan explain s3://h/scores",
    ]


def test_a_night_with_nothing_new() -> None:
    assert "0 scans planned, nothing new." in told(0, replace(FINISHED, planned=0, counts={"scored": 0}))[1]


def test_an_alarm_stands_in_the_title() -> None:
    title, text = told(0, FINISHED, replace(FINISHED, alarms=[ALARM]))
    assert title == "rayscan: night done, drift ALARM"
    assert f"Drift {ALARM}\nLook at these films" in text


def test_a_night_that_died_tells_how_far_it_came_and_nothing_that_the_error_said() -> None:
    title, text = told(3, DIED)
    assert title == "rayscan: night ended with exit code 3"
    assert "a store failed, or refused; 7 of 24 shards are written.\nIncomplete: run the same command again." in text
    assert "DOE" not in title + text


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StorageError("s3://h/DOE_JANE.dcm"), 1, "Failed"),
        (InputError("DOE"), 2, "Wrong input"),
        (IncompleteError("DOE"), 3, "Incomplete"),
        (typer.Exit(3), 3, "Incomplete"),
        (SystemExit(143), 143, "Stopped"),
        (KeyboardInterrupt(), 130, "Stopped"),
        (ZeroDivisionError("DOE"), 1, "Failed"),
    ],
)
def test_what_ends_a_night_goes_on_its_way(error: BaseException, code: int, says: str) -> None:
    with pytest.raises(type(error)), notified([], "s3://h/scores") as night:
        raise error
    title, text = message(night)
    assert title == f"rayscan: night ended with exit code {code}"
    assert text.startswith(f"No run was begun.\n{says}")
    assert "DOE" not in text


def test_without_the_package_it_is_one_line_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert channels([]) == []
    done = rayscan("score", "/nowhere", "--model", "/none", "--out", "/nowhere", "--notify", "json://hunter2@host")
    assert done.exit_code == 2
    assert done.stderr == (
        "rayscan: to notify, rayscan needs the package apprise: pip install 'rayscan[notify]', or leave out --notify"
        " (and RAYSCAN_NOTIFY)\n"
    )


def test_an_address_is_not_sent_to_a_cluster() -> None:
    for flag in (("--notify", "json://hunter2@host"), ("--notify=json://hunter2@host",)):
        done = rayscan("submit", "--address", "http://127.0.0.1:1", "--", "score", "s3://h/scans", *flag)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "RAYSCAN_NOTIFY" in done.stderr
        assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("job", "variable", "flags", "wanted"),
    [
        ('notify = "json://a"', "", [], ["json://a"]),
        ('notify = ["json://a", "json://b"]', "", [], ["json://a", "json://b"]),
        ("", "json://c  json://d", [], ["json://c", "json://d"]),
        ('notify = "json://a"', "json://c", [], ["json://c"]),
        ('notify = "json://a"', "json://c", ["--notify", "json://e"], ["json://e"]),
        ("", "", [], None),
    ],
)
def test_where_addresses_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, variable: str, flags: list[str], wanted: object
) -> None:
    (tmp_path / "night.toml").write_text(f"[score]\narchive = 's3://a'\nmodel = 's3://m'\nout = 's3://o'\n{job}\n")
    monkeypatch.setenv("RAYSCAN_NOTIFY", variable)
    command = typer.main.get_command(app).commands["score"]  # type: ignore[attr-defined]
    context = command.make_context("score", ["--config", str(tmp_path / "night.toml"), *flags])
    assert (context.params["notify"] or None) == wanted


class Inbox:
    """A web server that keeps what is posted to it."""

    def __init__(self, status: int = 200) -> None:
        posted = self.posted = list[dict[str, Any]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://user:hunter2@127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    yield from serving(Inbox())


@pytest.fixture
def broken() -> Iterator[Inbox]:
    yield from serving(Inbox(status=500))


def serving(inbox: Inbox) -> Iterator[Inbox]:
    pytest.importorskip("apprise", reason="the extra `notify` is not installed")
    yield inbox
    inbox.server.shutdown()
    inbox.server.server_close()


def rayscan(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_each_address_gets_the_message(inbox: Inbox) -> None:
    with notified(channels([inbox.url, inbox.url]), "s3://h/scores") as night:
        night.runs.append(replace(FINISHED, alarms=[ALARM]))
    assert [post["title"] for post in inbox.posted] == ["rayscan: night done, drift ALARM"] * 2
    assert inbox.posted[0]["message"] == message(night)[1]
    assert inbox.posted[0]["type"] == "warning"


def test_one_that_is_not_delivered_is_a_warning_without_the_address(
    inbox: Inbox, broken: Inbox, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    nobody = "json://user:hunter2@127.0.0.1:1/x"
    with notified(channels([broken.url, nobody, inbox.url]), "s3://h/scores") as night:
        night.runs.append(FINISHED)
    assert len(inbox.posted) == 1, "the others hear of it all the same"
    assert [record.getMessage() for record in caplog.records if record.name == "rayscan"] == [
        "the notification to address 1 (json) was not delivered (refused, or not reached)",
        "the notification to address 2 (json) was not delivered (refused, or not reached)",
    ]
    out, err = capfd.readouterr()
    assert "hunter2" not in out + err + caplog.text


@pytest.mark.parametrize(("url", "name"), [("nonsense://hunter2@host", "(nonsense)"), ("hunter2", "(no scheme)")])
def test_what_apprise_does_not_know_is_refused_without_showing_it(
    inbox: Inbox, url: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = rayscan("score", "/nowhere", "--model", "/none", "--out", "/nowhere", "--notify", inbox.url, "--notify", url)
    assert done.exit_code == 2
    assert re.match(rf"rayscan: --notify: address 2 {re.escape(name)} is none that apprise can send to", done.stderr)
    assert "hunter2" not in done.stderr + "".join(capfd.readouterr())
    assert inbox.posted == []


def test_a_night_tells_its_end_and_keeps_no_address(inbox: Inbox, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "notes.txt").write_text("no scan")
    (films / "a.jpg").write_bytes(b"")
    bundle, out = save_untrained(tmp_path / "bundle"), str(tmp_path / "scores")
    command = ("score", str(films), "--model", str(bundle.folder), "--out", out, "--notify", inbox.url)
    assert rayscan(*command, "--dry-run").exit_code == 0
    assert inbox.posted == [], "a dry run is no night"
    missing = rayscan(*(str(tmp_path / "gone") if word == str(films) else word for word in command))
    assert missing.exit_code == 2
    assert [post["title"] for post in inbox.posted] == ["rayscan: night ended with exit code 2"]
    assert inbox.posted[0]["type"] == "failure"
    store = open_store(str(tmp_path))
    everything = b"".join(store.get(info.key) for chunk in store.list() for info in chunk)
    assert b"hunter2" not in everything
