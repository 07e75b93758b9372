"""The line on two machines that share only a store, the code sent along; the worker lost while it scores."""

import json
from pathlib import Path

import pytest

from pipelines.phantom import write_archive
from pipelines.storage import open_store
from pipelines.table.query import ask
from tests.chaos.growing_cluster import can_make_namespaces
from tests.chaos.two_machines import ADDRESS, HEAD, WORKER, Step, run_on_two_machines
from tests.servers import clean_environment

FILMS = 2000
"""Of the night: enough that it is not over before the worker is lost."""

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not can_make_namespaces(), reason="only root may make the namespaces it has to run in"),
]


def test_prepare_tune_and_score_use_both_and_outlive_one(rayscan_command: str, tmp_path: Path) -> None:
    bucket = tmp_path / "store" / "hospital"
    write_archive(open_store(str(bucket / "films")), patients=60, seed=3, size=128)
    scans = write_archive(open_store(str(bucket / "night")), patients=FILMS, seed=4, size=128, layout="flat")

    def on_head(verb: str, source: str, *options: str, cluster: bool = True, kill_after: int | None = None) -> Step:
        address = ("--address", ADDRESS) if cluster else ()
        place = f"s3://hospital/{source}"
        return Step(command=[rayscan_command, verb, place, *options, *address, "--json"], kill_after=kill_after)

    model = ("--model", "s3://hospital/study/best", "--out", "s3://hospital/scores")
    steps = [
        on_head("catalog", "films", "--labels", "path", "--out", "s3://hospital/catalog", cluster=False),
        on_head("prepare", "catalog", "--size", "64", "--out", "s3://hospital/dataset"),
        on_head("tune", "dataset", "--out", "s3://hospital/study", "--family", "mlp", "--trials", "4", "--epochs", "3"),
        on_head("score", "night", *model, "--shard-size", "16", kill_after=8),
        on_head("score", "night", *model),
    ]
    done = run_on_two_machines(steps, bucket.parent, clean_environment())
    for step, one in zip(steps, done, strict=False):
        print(step.command[1], one.code, one.machines, "worker lost" if one.killed else "")
    assert [one.code for one in done] == [0] * len(steps), done[-1].stderr
    _, prepare, tune, night, again = done
    assert prepare.machines == tune.machines == night.machines == [HEAD, WORKER]
    assert night.killed
    first, second = json.loads(night.stdout), json.loads(again.stdout)
    assert first[-1]["counts"]["failed"] == 0
    assert second[-1]["planned"] == 0
    (row,) = ask(
        str(bucket / "scores"), "SELECT count(*) AS rows, count(DISTINCT scan_id) AS scans FROM scores"
    ).to_pylist()
    assert row == {"rows": scans, "scans": scans}
