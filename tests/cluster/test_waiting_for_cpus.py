"""A run behind another job says what it waits for and who has it, in the words of that job's verb."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines import waiting
from pipelines.shards import Stage, run_shards
from tests.nights import wait_for

HOLDS = """
import sys
import ray
from cluster.session import ray_session

class Trial:
    def there(self):
        return True

with ray_session(sys.argv[1], working_on="tune"):
    trials = [ray.remote(Trial).options(num_cpus=2).remote() for _ in range(2)]
    print(ray.get([trial.there.remote() for trial in trials]), flush=True)
    sys.stdin.read()
"""


class Count:
    """Takes long enough to be seen at work."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        time.sleep(1)  # the work itself: nothing is waited for
        return {"shard": [int(batch["shard"][0])]}


@contextlib.contextmanager
def _search_that_holds_all_cpus() -> Iterator[subprocess.Popen[str]]:
    import ray

    command = [sys.executable, "-c", HOLDS, ray.get_runtime_context().gcs_address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as search:
        try:
            assert search.stdout
            assert search.stdout.readline() == "[True, True]\n"
            yield search
        finally:
            search.kill()


@pytest.mark.usefixtures("ray_session")
def test_a_run_behind_a_search_names_it_and_says_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.2)
    caplog.set_level("INFO", "rayscan")
    done: list[dict[str, Any]] = []

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    with _search_that_holds_all_cpus() as search:
        stage = Stage(actor=Count, settings={}, actors=2)
        run = threading.Thread(target=lambda: done.extend(run_shards("night", [{"shard": 0}, {"shard": 1}], stage)))
        run.start()
        wait_for(lambda: "waiting for 2 CPUs, held by tune (4 CPUs)" in lines())
        assert not done
        search.communicate()  # closes its input, which ends it
        run.join()
    assert len(done) == 2
    assert any(line.startswith("goes on: ") for line in lines())
