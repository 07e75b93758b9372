"""A night on Azure's store: archive, catalogue, model and scores in one container, each scan scored exactly once."""

import json
import subprocess
from pathlib import Path

import pytest

from pipelines.bundles import publish_bundle
from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.pipelines.bundles import save_untrained
from tests.servers import AzureServer, clean_environment


@pytest.mark.chaos
def test_a_night_that_died_and_the_one_after_it_score_every_scan_once(
    rayscan_command: str, azure: AzureServer, tmp_path: Path
) -> None:
    container = azure.bucket()
    archive = open_store(f"{container}/night")
    delivered = write_archive(
        archive, patients=12, seed=4, size=96, layout="flat", formats=("jpeg", "png", "dicom"), broken=True
    )
    save_untrained(tmp_path / "bundle")
    publish_bundle(tmp_path / "bundle", f"{container}/bundle")

    def rayscan(*args: str) -> list[dict[str, object]]:
        shown = subprocess.run(
            [rayscan_command, *args, "--json"],
            capture_output=True,
            text=True,
            env=clean_environment() | azure.environment(),
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        answer = json.loads(shown.stdout)
        return answer if isinstance(answer, list) else [answer]

    rayscan("catalog", archive.root, "--out", f"{container}/catalog")
    scoring = ("score", f"{container}/catalog", "--model", f"{container}/bundle", "--out", f"{container}/scores")
    first = rayscan(*scoring, "--shard-size", "16")[-1]
    assert first["planned"] == delivered
    assert sum(first["counts"].values()) == delivered
    assert first["counts"]["failed"] == 0
    assert first["conditional_put"], "Azure has it, so parts and versions of the table are written once"

    # As if the driver had been killed before its first commit: no record, a table without rows, one part never written.
    scores = open_store(f"{container}/scores")
    keys = [info.key for chunk in scores.list("scores") for info in chunk]
    part = next(key for key in keys if key.endswith(".parquet"))
    _, *commits = sorted(key for key in keys if "_delta_log" in key)
    scores.delete_all([part, *commits, f"runs/{first['run_id']}/run.json"])
    resumed, again = rayscan(*scoring)
    assert (resumed["run_id"], resumed["resumed_shards"]) == (first["run_id"], first["shards"] - 1)
    assert again["planned"] == 0

    rows = rayscan("query", f"{container}/scores", "SELECT uri, scan_id, status, probability FROM scores")
    assert len(rows) == len({row["scan_id"] for row in rows}) == delivered
    scored = [row["probability"] for row in rows if row["status"] == "scored"]
    assert len(scored) == first["counts"]["scored"] > 0
    assert all(0 <= probability <= 1 for probability in scored)
