"""One driver at a time: who holds the lease, who waits, who takes over, and who finds out that it was taken."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import IncompleteError
from pipelines.storage import Store, open_store
from pipelines.table import lease
from pipelines.table.lease import held_lease
from tests.servers import SERVERS, AzureServer, S3Server, clean_environment

FOLDER = "leases/model=m"
SECONDS = 30


@pytest.fixture(params=["local", "rclone", "moto", "azurite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    server: S3Server | AzureServer = request.getfixturevalue(SERVERS[request.param])
    return open_store(f"{server.bucket()}/scores")


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)


def generations(store: Store) -> list[int]:
    return sorted(int(Path(info.key).stem) for chunk in store.list(FOLDER) for info in chunk)


def write(store: Store, number: int, process: str | None) -> None:
    store.put(f"{FOLDER}/{number:08d}.json", json.dumps({"owner": "somebody", "process": process}).encode())


def test_free_leases_are_taken_at_once_and_leave_one_object(store: Store) -> None:
    for _ in range(3):
        with held_lease(store, "m") as held:
            held.check()
        assert len(generations(store)) == 1


@pytest.mark.usefixtures("brisk")
def test_while_one_is_alive_another_is_sent_away(store: Store) -> None:
    with (
        held_lease(store, "m") as held,
        pytest.raises(IncompleteError, match="another run is at work"),
        held_lease(store, "m"),
    ):
        pass
    held.check()
    with held_lease(store, "m"):
        pass


@pytest.mark.usefixtures("brisk")
def test_another_waits_for_its_turn(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with held_lease(store, "m", wait=SECONDS):
            order.append("second")

    with held_lease(store, "m"):
        thread = threading.Thread(target=second)
        thread.start()
        before = generations(store)
        while generations(store)[-1] < before[-1] + 3:  # renewed while the other one looks on
            threading.Event().wait(0.05)
        order.append("first")
    thread.join(SECONDS)
    assert order == ["first", "second"]


def test_models_do_not_wait_for_each_other(store: Store) -> None:
    with held_lease(store, "m"), held_lease(store, "n") as other:
        other.check()


@pytest.mark.usefixtures("brisk")
def test_a_dead_process_of_this_machine_holds_nothing(store: Store) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from pipelines.table.lease import _process; print(_process())"],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
    ).stdout.strip()
    if process == "None":
        pytest.skip("this system does not tell processes apart")
    write(store, 7, process)
    with held_lease(store, "m") as held:
        held.check()
        assert generations(store)[0] > 7


@pytest.mark.usefixtures("brisk")
def test_a_lease_that_nobody_renews_is_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_SECONDS", 2.0)
    write(store, 7, "another machine 1 2")
    with held_lease(store, "m") as held:
        held.check()
        assert generations(store)[0] > 7


@pytest.mark.usefixtures("brisk")
def test_who_comes_back_after_the_lease_was_taken_learns_it(store: Store) -> None:
    with held_lease(store, "m") as held:
        # Another took over as if this one had been away: far ahead, the numbers between deleted again.
        write(store, 1000, "another machine 1 2")
        assert held._lost.wait(SECONDS)
        with pytest.raises(IncompleteError, match="another run has taken over"):
            held.check()
    assert 1000 in generations(store)
    assert json.loads(store.get(f"{FOLDER}/00001000.json"))["owner"] == "somebody"


def test_who_slept_through_its_end_learns_it_when_it_asks(store: Store) -> None:
    with held_lease(store, "m") as held:
        held.confirm()
        write(store, 1000, "another machine 1 2")
        held.check()
        with pytest.raises(IncompleteError, match="another run has taken over"):
            held.confirm()


def test_a_lease_not_renewed_for_its_time_is_not_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_SECONDS", 0.0)
    with (
        held_lease(open_store(str(tmp_path)), "m") as held,
        pytest.raises(IncompleteError, match="another run has taken over"),
    ):
        held.check()


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("place", ["local", "moto"])
def test_of_many_at_once_one_holds_it_at_a_time(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store = open_store(
        str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3_conditional').bucket()}/scores"
    )
    holders, most, done = [0], [0], []

    def work(number: int) -> None:
        with held_lease(store, "m", wait=SECONDS):
            holders[0] += 1
            most[0] = max(most[0], holders[0])
            store.put(f"work/{number}", b"")
            holders[0] -= 1
        done.append(number)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert sorted(done) == list(range(6))
    assert most[0] == 1
