"""Storage that misbehaves: the night ends with every row, or stops with one clear line and is resumed whole."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.storage import open_store
from tests.chaos.fault_proxy import Faults, faulty
from tests.nights import Night, make_night
from tests.servers import S3Server, clean_environment

FILMS = 400
WHOLE = {"rows": FILMS, "scans": FILMS, "runs": 1}
ALL_SCORED = {("scored", None): FILMS}

pytestmark = pytest.mark.chaos


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture(params=["rclone", "moto"])
def night(request: pytest.FixtureRequest, rayscan_command: str, tmp_path: Path, faults: Faults) -> Iterator[Night]:
    """Films and scores on a real S3 server; this process reaches it directly, the command through the faulty front."""
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    with faulty(server, faults) as front:
        night = make_night(rayscan_command, tmp_path, films=FILMS, root=server.bucket(), side=200)
        environment = {**clean_environment(), **front.environment(), "RAYSCAN_CACHE": str(tmp_path / "cache")}
        yield replace(night, environment=environment, options=("--shard-size", "20"))


def tell(what: str, faults: Faults, night: Night) -> None:
    print(f"{what}: {dict(faults.injected)}, rows {night.rows()}, {night.statuses()}")


def test_one_request_in_twenty_is_throttled(night: Night, faults: Faults) -> None:
    faults.slow_down = 0.05
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    assert night.statuses() == ALL_SCORED
    assert faults.injected["slow_down"] > FILMS // 40
    tell("5 % SlowDown", faults, night)


def test_connections_are_cut_in_the_middle_of_a_film(night: Night, faults: Faults) -> None:
    faults.cut = 0.05
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    assert night.statuses() == ALL_SCORED
    assert faults.injected["cut"] > FILMS // 40
    tell("5 % cut mid-body", faults, night)


def test_the_store_is_ten_times_slower(night: Night, faults: Faults) -> None:
    faults.latency = 0.1
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    assert night.statuses() == ALL_SCORED
    tell("100 ms latency", faults, night)


@pytest.mark.parametrize(
    ("fault", "line"), [("gone", "no such bucket|could not be fetched"), ("denied", "credentials")]
)
def test_a_store_that_is_lost_half_way_stops_the_night_and_a_later_one_ends_it(
    night: Night, faults: Faults, fault: str, line: str
) -> None:
    with night.running() as driver:
        night.wait_for_parts(driver, 2)
        if fault == "gone":
            faults.gone = night.archive.root.removeprefix("s3://").partition("/")[0]
        else:
            faults.denied = True
        _, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 3, stderr
    (last,) = [text for text in stderr.splitlines() if text.startswith("rayscan: ")]
    assert re.search(line, last)
    assert "run the same command again" in last
    assert "Traceback" not in stderr
    assert night.rows()["rows"] < FILMS

    faults.gone, faults.denied = None, False
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.rows() == WHOLE
    assert night.statuses() == ALL_SCORED
    tell(fault, faults, night)


def test_a_forbidden_folder_is_left_out_and_the_night_goes_on(night: Night, faults: Faults) -> None:
    night = replace(night, options=("--shard-size", "40"))  # a worker meets all of the folder's films in a row
    for number in range(40):
        night.archive.put(f"south/{number}.jpeg", night.archive.get(f"{number}.jpeg"))
    faults.forbidden = (f"/{night.archive.root.removeprefix('s3://')}/south/", 403, "InvalidObjectState")
    done = night.run()
    assert done.returncode == 3, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("rayscan: ")]
    assert f"{night.archive.uri('south/')}: 40 scans could not be read" in line
    assert "restore it first" in line
    assert night.statuses() == {**ALL_SCORED, ("failed", "access_denied"): 40}
    tell("a forbidden folder", faults, night)

    faults.forbidden = None
    done = night.run()
    assert done.returncode == 0, done.stderr
    assert night.statuses()[("scored", None)] == FILMS + 40


def test_an_archive_that_is_lost_alone_stops_the_night_too(night: Night, faults: Faults, tmp_path: Path) -> None:
    """The scores can still be written, but a night of `failed` rows would hide that the archive is gone."""
    night = replace(night, scores=open_store(str(tmp_path / "scores")))
    with night.running() as driver:
        night.wait_for_parts(driver, 2)
        faults.throttled = night.archive.root.removeprefix("s3://").partition("/")[0]
        _, stderr = driver.communicate(timeout=900)
    assert driver.returncode == 3, stderr
    assert "scans in a row could not be fetched (storage_error)" in stderr
    faults.throttled = None
    done = night.run()
    assert done.returncode == 0, done.stderr
    statuses = night.statuses()
    failed = statuses.pop(("failed", "storage_error"), 0)
    assert statuses == ALL_SCORED, "each scan once, those that failed in the first run by the second"
    assert failed < FILMS // 4, "rows of the few shards that were lost before the run was stopped"
    tell("the archive alone SlowDown", faults, night)
